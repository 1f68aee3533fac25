#!lua flags=no-writes
-- Which of some loaded coupons are over and at rest: archived, or ended a while ago, by Redis's clock,
-- with every unit either free or issued.
--
-- KEYS  1 certificate, then for each coupon: coupon, free
-- ARGV  1 credential  2 how long ago it must have ended, in ms
-- Returns a certificate fault, or {'ok', generation, …}, '' for one that is not
--@certificate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {'ok'}
for key = 2, #KEYS, 2 do
  -- One that is damaged is left for the audit to name.
  local held = redis.pcall('HMGET', KEYS[key], 'ends_at', 'archived', 'generation', 'next', 'settled')
  local free = redis.pcall('SCARD', KEYS[key + 1])
  local ends_at, next_serial = whole(held[1]), whole(held[4])
  local over = ends_at and next_serial and (held[2] == '1' or now >= ends_at + tonumber(ARGV[2]))
  local at_rest = over and whole(held[3]) and type(free) == 'number' and next_serial - 1 - free == whole(held[5])
  reply[#reply + 1] = at_rest and held[3] or ''
end
return reply
