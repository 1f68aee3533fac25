#!lua flags=no-writes
-- Which of some loaded coupons are over and at rest: archived, or ended a while ago, by Redis's clock,
-- with every unit that it has or had free, issued or moved away.
--
-- KEYS  1 certificate, then for each coupon: coupon, free
-- ARGV  1 credential  2 how long ago it must have ended, in ms
-- Returns a certificate fault, or {'ok', generation, …}, '' for one that is not
--@certificate
--@units
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {'ok'}
for key = 2, #KEYS, 2 do
  -- One that is damaged is left for the audit to name.
  local held = redis.pcall('HMGET', KEYS[key], 'ends_at', 'archived', 'generation', 'next', 'settled',
    'shares', 'credited', 'moved')
  local free = redis.pcall('SCARD', KEYS[key + 1])
  local ends_at = whole(held[1])
  local next_serial, settled, shares = whole(held[4]), whole(held[5]), whole(held[6] or '1')
  local credited, moved = whole(held[7] or '0'), whole(held[8] or '0')
  local over = ends_at and (held[2] == '1' or now >= ends_at + tonumber(ARGV[2]))
  local at_rest = over and whole(held[3]) and type(free) == 'number' and next_serial and settled and shares and credited and moved
    and taken(next_serial, shares, credited, free) == settled + moved
  reply[#reply + 1] = at_rest and held[3] or ''
end
return reply
