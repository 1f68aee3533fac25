#!lua flags=allow-oom
-- Takes coupons out of Redis that are over and have nothing in flight: the caller saw that they were
-- over (over.lua), and after that found none of them in the in-flight hash. Of the same generation they
-- are over still, so nothing of them can have come into flight since; that every unit is free or issued
-- is asked again all the same.
--
-- KEYS  1 certificate  2 counters  3 loaded coupons, then for each coupon: coupon, holders, free
-- ARGV  1 credential, then the generation of each coupon as over.lua said it
-- Returns a certificate fault, or {'ok', how many units were issued in all | '' not retired, …}
--@certificate
--@outdate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

redis.call('SCARD', KEYS[3]) -- an error here, if the key is of a wrong type, is before the first write
local reply, retired = {'ok'}, false
for item = 1, #ARGV - 1 do
  local key = 4 + (item - 1) * 3
  local held = redis.pcall('HMGET', KEYS[key], 'generation', 'next', 'settled', 'id')
  local next_serial, free = whole(held[2]), redis.pcall('SCARD', KEYS[key + 2])
  local at_rest = held[1] == ARGV[item + 1] and next_serial and held[4] and type(free) == 'number'
    and next_serial - 1 - free == whole(held[3])
  if at_rest then
    redis.call('UNLINK', KEYS[key], KEYS[key + 1], KEYS[key + 2])
    redis.call('SREM', KEYS[3], held[4])
    retired = true
  end
  reply[#reply + 1] = at_rest and held[3] or ''
end
if retired then outdate(KEYS[2], 'retired', 1) end
return reply
