#!lua flags=allow-oom
-- Sets the count of settled units right, if nothing has moved since it was compared with the ledger.
--
-- KEYS  1 certificate  2 counters  3 coupon  4 free
-- ARGV  1 credential  2 token  3 accepted, of the partition  4 next  5 free units  6 settled  7 the right count
-- Returns a certificate fault, or {'ok', 'counted', 'superseded' or 'moved'}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[3], 'audit', 'next', 'settled')
if state[1] ~= ARGV[2] then return {'ok', 'superseded'} end
local accepted = redis.call('HGET', KEYS[2], 'accepted') or '0'
if accepted ~= ARGV[3] or state[2] ~= ARGV[4] or state[3] ~= ARGV[6]
  or redis.call('SCARD', KEYS[4]) ~= tonumber(ARGV[5]) then
  return {'ok', 'moved'}
end
redis.call('HSET', KEYS[3], 'settled', ARGV[7])
return {'ok', 'counted'}
