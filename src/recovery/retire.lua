#!lua flags=allow-oom
-- Takes coupons out of Redis that are over and have nothing in flight: the caller saw that they were
-- over (over.lua), and after that found none of them in the in-flight hash. Of the same generation they
-- are over still, so nothing of them can have come into flight since; that every unit is free, issued or moved
-- away is asked again all the same.
--
-- KEYS  1 certificate  2 counters  3 loaded coupons, then for each coupon: coupon, holders, free
-- ARGV  1 credential, then the generation of each coupon as over.lua said it
-- Returns a certificate fault, or {'ok', how many units were issued in all | '-' unknown, for other shares issued some too
--       | '' not retired, …}
--@certificate
--@outdate
--@units
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

redis.call('SCARD', KEYS[3]) -- an error here, if the key is of a wrong type, is before the first write
local reply, retired = {'ok'}, false
for item = 1, #ARGV - 1 do
  local key = 4 + (item - 1) * 3
  local held = redis.pcall('HMGET', KEYS[key], 'generation', 'next', 'settled', 'id', 'shares', 'credited', 'moved')
  local free = redis.pcall('SCARD', KEYS[key + 2])
  local next_serial, settled, shares = whole(held[2]), whole(held[3]), whole(held[5] or '1')
  local credited, moved = whole(held[6] or '0'), whole(held[7] or '0')
  local at_rest = held[1] == ARGV[item + 1] and held[4] and type(free) == 'number'
    and next_serial and settled and shares and credited and moved
    and taken(next_serial, shares, credited, free) == settled + moved
  if at_rest then
    redis.call('UNLINK', KEYS[key], KEYS[key + 1], KEYS[key + 2])
    redis.call('SREM', KEYS[3], held[4])
    retired = true
  end
  reply[#reply + 1] = at_rest and (shares == 1 and held[3] or '-') or ''
end
if retired then outdate(KEYS[2], 'retired', 1) end
return reply
