#!lua flags=allow-oom
-- Says that a worker lives. It must have done so before it reads: entries of a consumer without a
-- fresh heartbeat are claimed by others.
--
-- KEYS  1 certificate  2 workers
-- ARGV  1 credential  2 consumer  3 what it says of itself
-- Returns a certificate fault, or {'ok', now in ms}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
-- All that lies there is said anew each second.
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], ARGV[2], now .. ' ' .. ARGV[3])
return {'ok', now}
