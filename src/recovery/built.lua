#!lua flags=allow-oom
-- Ends the writing of a queue: its group, if no dead letter began it, its counters, and the mark that says
-- that all is there.
--
-- KEYS  1 certificate  2 stream  3 counters  4 build marker
-- ARGV  1 the epoch being built  2 group  3 how many are in flight  4 generation of the service's state
--       5 '1' if the service is paused
-- Returns {'built'} or {'superseded'} (another process recovers; nothing was done)
local held = redis.call('HMGET', KEYS[1], 'state', 'building')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] then return {'superseded'} end

redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0', 'MKSTREAM') -- fails where there is one
redis.call('HSET', KEYS[3], 'accepted', ARGV[3], 'settled', '0', 'service_generation', ARGV[4], 'paused', ARGV[5])
redis.call('SET', KEYS[4], ARGV[1])
return {'built'}
