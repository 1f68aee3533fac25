#!lua flags=allow-oom
-- Stages a piece of a coupon for the epoch that is being built, whether there is memory left or not: what it
-- takes, the old epoch has had.
--
-- KEYS  1 certificate  2 staging key
-- ARGV  1 the epoch being built  2 HSET or SADD  3 seconds until it expires, then fields and values, or members
-- Returns {'staged'} or {'superseded'} (another process recovers; nothing was done)
local held = redis.call('HMGET', KEYS[1], 'state', 'building')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] then return {'superseded'} end
redis.call(ARGV[2], KEYS[2], unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[2], ARGV[3])
return {'staged'}
