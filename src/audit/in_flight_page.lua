#!lua flags=no-writes
-- One page of what is in flight, and whether some units of a coupon are still not free: together they
-- say that a unit is nowhere. A hash that fits one page is read at one moment.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 free
-- ARGV  1 credential  2 cursor ('0' at first)  3 how many values to read, about  4 coupon id, then units
-- Returns a certificate fault, or
--       {'ok', next cursor ('0' at the end), {unit, …} of those that are free,
--        {issuance id (16 bytes), unit, …} of what the page has in flight of the coupon}
--@certificate
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

-- Where it cannot be read, no unit counts as free by it.
local next_serial = tonumber(redis.call('HGET', KEYS[3], 'next') or 0) or math.huge
local free, in_flight = {}, {}
for at = 5, #ARGV do
  if is_free(KEYS[4], next_serial, ARGV[at]) then free[#free + 1] = ARGV[at] end
end
local scan = redis.call('HSCAN', KEYS[2], ARGV[2], 'COUNT', ARGV[3])
for i = 1, #scan[2], 2 do
  local unit, coupon = string.match(scan[2][i + 1], '^%S+ (%d+) %S+ %S+ %S+ (%S+) ')
  if coupon == ARGV[4] then
    in_flight[#in_flight + 1] = scan[2][i]
    in_flight[#in_flight + 1] = unit
  end
end
return {'ok', scan[1], free, in_flight}
