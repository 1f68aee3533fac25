#!lua flags=allow-oom
-- Counts a record that Redis knows nothing of: its unit is taken out of the free ones, and one more is settled. Of an issued
-- one its user's dedupe gets its id; of a unit that was moved away a mark remains. Idempotent by id.
-- What is in flight is left to be settled, which counts it.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 holders  5 free
-- ARGV  1 credential  2 issuance id (16 bytes)  3 user, or what stands for the share that it was moved to  4 unit  5 how many units a call may move at most
-- Returns a certificate fault, or {'ok', what}: what is
--   'adopted', 'counted' (it was), 'in-flight', 'unloaded', 'beyond' (the serial is beyond the total),
--   'damaged' (its figures cannot be read) or 'more' (the unit is so far above the next one that the call
--   must be repeated)
--@certificate
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[3], 'id', 'total', 'next', 'settled', 'shares')
if not state[1] then return {'ok', 'unloaded'} end
for field = 2, 4 do
  if not string.match(state[field] or '', '^%d+$') then return {'ok', 'damaged'} end
end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return {'ok', 'in-flight'} end
local is_move = string.sub(ARGV[3], 1, 1) == '='
if is_move and redis.call('HEXISTS', KEYS[4], '-' .. ARGV[2]) == 1 then return {'ok', 'counted'} end
local held = not is_move and redis.call('HGET', KEYS[4], ARGV[3]) or ''
for i = 1, #held, 16 do
  if string.sub(held, i, i + 15) == ARGV[2] then return {'ok', 'counted'} end
end
local unit, total, next_serial = tonumber(ARGV[4]), tonumber(state[2]), tonumber(state[3])
if unit % SERIALS > total then return {'ok', 'beyond'} end
redis.call('SCARD', KEYS[5]) -- an error here, if the key is of a wrong type, is before the first write

local shares = tonumber(state[5] or '1')
if not take_unit(KEYS[3], KEYS[5], shares, next_serial, unit, tonumber(ARGV[5])) then return {'ok', 'more'} end
if is_move then
  redis.call('HSET', KEYS[4], '-' .. ARGV[2], '1')
  redis.call('HINCRBY', KEYS[3], 'moved', 1)
else
  redis.call('HSET', KEYS[4], ARGV[3], held .. ARGV[2])
  redis.call('HINCRBY', KEYS[3], 'settled', 1)
end
return {'ok', 'adopted'}
