#!lua flags=allow-oom
-- Takes a turn that nobody has, or keeps one's own. The work of turns goes on when Redis is full.
--
-- KEYS  1 the turn
-- ARGV  1 a name of one's own  2 how long the turn lasts, ms
-- Returns {'1'} if it is one's own now, else {'0'}
local left = redis.call('PTTL', KEYS[1])
-- One that ends later than any can was taken before the clock was set back: it is over.
local is_taken = left >= 0 and left <= tonumber(ARGV[2])
if is_taken and redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'0'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'1'}
