#!lua flags=no-writes
-- Which of some loaded coupons are over and at rest: archived, or ended a while ago, by Redis's clock,
-- with every unit either free or issued.
--
-- KEYS  1 certificate, then for each coupon: coupon, free
-- ARGV  1 epoch  2 how long ago it must have ended, in ms
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', generation, …}, '' for one that is not
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {'ok'}
for key = 2, #KEYS, 2 do
  local held = redis.call('HMGET', KEYS[key], 'ends_at', 'archived', 'generation', 'next', 'settled')
  local over = held[1] and (held[2] == '1' or now >= tonumber(held[1]) + tonumber(ARGV[2]))
  local at_rest = over and tonumber(held[4]) - 1 - redis.call('SCARD', KEYS[key + 1]) == tonumber(held[5])
  reply[#reply + 1] = at_rest and held[3] or ''
end
return reply
