#!lua flags=allow-oom
-- Takes a turn that nobody has, or keeps one's own, or gives it up. The work of turns goes on when Redis is full.
--
-- KEYS  1 the turn
-- ARGV  1 a name of one's own  2 how long the turn lasts, ms; 0 gives it up
-- Returns {'1'} if it is one's own now, else {'0'}
if ARGV[2] == '0' then
  if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return {'0'}
end
local left = redis.call('PTTL', KEYS[1])
-- One that ends later than any can was taken before the clock was set back: it is over.
local is_taken = left >= 0 and left <= tonumber(ARGV[2])
if is_taken and redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'0'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'1'}
