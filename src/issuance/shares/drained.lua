#!lua flags=allow-oom
-- Says until when a share that has no units may answer for all shares that the coupon is sold out: somebody looked at all,
-- and all were empty at one instant. A point of time by this node's clock, counted from that look: a
-- caller that slept since then says nothing new.†
--
-- KEYS  1 certificate  2 coupon
-- ARGV  1 credential  2 until when, in ms
-- Returns a certificate fault, or {'ok'}
--@certificate
--@units
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[2], 'id', 'drained_until')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local told, known = tonumber(ARGV[2]), whole(state[2])
if state[1] and is_drained(told, now) and not (is_drained(known, now) and known >= told) then
  redis.call('HSET', KEYS[2], 'drained_until', ARGV[2])
end
return {'ok'}
