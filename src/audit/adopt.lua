#!lua flags=allow-oom
-- Counts an issued record that Redis knows nothing of: its user's dedupe gets its id, its unit is taken
-- out of the free ones, one more is settled. Idempotent by id.
-- What is in flight is left to be settled, which counts it.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 holders  5 free
-- ARGV  1 epoch  2 issuance id (16 bytes)  3 user  4 serial  5 how many units a call may move at most
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', what}: what is
--   'adopted', 'counted' (it was), 'in-flight', 'unloaded', 'beyond' (the serial is beyond the total)
--   or 'more' (the unit is so far above the next one that the call must be repeated)
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[3], 'id', 'total', 'next', 'settled')
if not state[1] then return {'ok', 'unloaded'} end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return {'ok', 'in-flight'} end
local held = redis.call('HGET', KEYS[4], ARGV[3]) or ''
for i = 1, #held, 16 do
  if string.sub(held, i, i + 15) == ARGV[2] then return {'ok', 'counted'} end
end
local serial, total, next_serial = tonumber(ARGV[4]), tonumber(state[2]), tonumber(state[3])
if serial > total then return {'ok', 'beyond'} end
redis.call('SCARD', KEYS[5]) -- an error here, if the key is of a wrong type, is before the first write

-- Units from the next one on are free by the counter alone; those below the serial join the set.
local last = math.min(serial - 1, next_serial + tonumber(ARGV[5]) - 1)
for unit = next_serial, last do redis.call('SADD', KEYS[5], string.format('%.0f', unit)) end
if last < serial - 1 then
  redis.call('HSET', KEYS[3], 'next', string.format('%.0f', last + 1))
  return {'ok', 'more'}
end
if serial >= next_serial then
  redis.call('HSET', KEYS[3], 'next', string.format('%.0f', serial + 1))
else
  redis.call('SREM', KEYS[5], ARGV[4])
end
redis.call('HSET', KEYS[4], ARGV[3], held .. ARGV[2])
redis.call('HINCRBY', KEYS[3], 'settled', 1)
return {'ok', 'adopted'}
