#!lua flags=allow-oom
-- Takes a turn that nobody has. The work of turns goes on when Redis is full.
--
-- KEYS  1 the turn
-- ARGV  1 a name of one's own  2 how long the turn lasts, ms
-- Returns {'1'} if it was taken, else {'0'}
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  -- One that ends later than any can was taken before the clock was set back: it is over.
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 and left <= tonumber(ARGV[2]) then return {'0'} end
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {'1'}
