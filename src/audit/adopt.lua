#!lua flags=allow-oom
-- Counts an issued record that Redis knows nothing of: its user's dedupe gets its id, its unit is taken
-- out of the free ones, one more is settled. Idempotent by id.
-- What is in flight is left to be settled, which counts it.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 holders  5 free
-- ARGV  1 credential  2 issuance id (16 bytes)  3 user  4 serial  5 how many units a call may move at most
-- Returns a certificate fault, or {'ok', what}: what is
--   'adopted', 'counted' (it was), 'in-flight', 'unloaded', 'beyond' (the serial is beyond the total),
--   'damaged' (its figures cannot be read) or 'more' (the unit is so far above the next one that the call
--   must be repeated)
--@certificate
--@take_unit
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[3], 'id', 'total', 'next', 'settled')
if not state[1] then return {'ok', 'unloaded'} end
for field = 2, 4 do
  if not string.match(state[field] or '', '^%d+$') then return {'ok', 'damaged'} end
end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return {'ok', 'in-flight'} end
local held = redis.call('HGET', KEYS[4], ARGV[3]) or ''
for i = 1, #held, 16 do
  if string.sub(held, i, i + 15) == ARGV[2] then return {'ok', 'counted'} end
end
local serial, total, next_serial = tonumber(ARGV[4]), tonumber(state[2]), tonumber(state[3])
if serial > total then return {'ok', 'beyond'} end
redis.call('SCARD', KEYS[5]) -- an error here, if the key is of a wrong type, is before the first write

if not take_unit(KEYS[3], KEYS[5], next_serial, serial, tonumber(ARGV[5])) then return {'ok', 'more'} end
redis.call('HSET', KEYS[4], ARGV[3], held .. ARGV[2])
redis.call('HINCRBY', KEYS[3], 'settled', 1)
return {'ok', 'adopted'}
