#!lua flags=allow-oom
-- Takes a unit out of the free ones: one that the ledger has issued, which it is for ever, or one that
-- is in flight, if it still is.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 free
-- ARGV  1 credential  2 unit  3 the id (16 bytes) it is in flight for, '' if it is issued
--       4 how many units a call may move at most
-- Returns a certificate fault, or {'ok', what}: what is 'taken', 'moved' (it is not in
--   flight any more), 'unloaded' or 'more' (the call must be repeated)
--@certificate
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[3], 'next', 'shares')
local next_serial, shares = tonumber(state[1]), tonumber(state[2] or '1')
if not next_serial then return {'ok', 'unloaded'} end
if ARGV[3] ~= '' then
  local value = redis.call('HGET', KEYS[2], ARGV[3])
  if not value or string.match(value, '^%S+ (%S+) ') ~= ARGV[2] then return {'ok', 'moved'} end
end
redis.call('SCARD', KEYS[4]) -- an error here, if the key is of a wrong type, is before the first write

if not take_unit(KEYS[3], KEYS[4], shares, next_serial, tonumber(ARGV[2]), tonumber(ARGV[4])) then return {'ok', 'more'} end
return {'ok', 'taken'}
