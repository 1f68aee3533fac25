#!lua flags=no-writes
-- The live stock of some coupons, all read at one moment.
--
-- KEYS  1 certificate, then for each coupon: coupon, free
-- ARGV  1 epoch
-- Returns {'uncertified'} or {'stale', epoch}, or
--       {'ok', now in ms, {total, next, settled, free}, …}; {} for a coupon that is not loaded
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local reply = {'ok', time[1] * 1000 + math.floor(time[2] / 1000)}
for key = 2, #KEYS, 2 do
  local held = redis.call('HMGET', KEYS[key], 'total', 'next', 'settled')
  if held[1] then
    reply[#reply + 1] = {tonumber(held[1]), tonumber(held[2]), tonumber(held[3]), redis.call('SCARD', KEYS[key + 1])}
  else
    reply[#reply + 1] = {}
  end
end
return reply
