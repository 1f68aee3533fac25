#!lua flags=allow-oom
-- Gives an issuance in flight a fresh serial, because another issuance holds its old one in the
-- ledger. The old one is never given back: it is taken.
-- Compare-and-set on the stream entry and the old serial: of two workers, one reassigns. One in flight
-- without a serial gets one, whatever its stream entry named.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 free
-- ARGV  1 epoch  2 issuance id (16 bytes)  3 entry id  4 the old serial ('0' for none)
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', what, serial}: what is
--   'taken' (serial is fresh), 'changed' (somebody else was first; serial is the one in flight),
--   'none' (no unit is free), 'gone' (this entry is no longer in flight),
--   'unloaded' (the coupon is not loaded, which cannot be while it has something in flight)
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local value = redis.call('HGET', KEYS[2], ARGV[2])
if not value then return {'ok', 'gone', '0'} end
local entry, serial, rest = string.match(value, '^(%S+) (%S+) (.+)$')
if entry ~= ARGV[3] then return {'ok', 'gone', '0'} end
if serial ~= ARGV[4] and serial ~= '0' then return {'ok', 'changed', serial} end

local state = redis.call('HMGET', KEYS[3], 'total', 'next')
if not state[1] then return {'ok', 'unloaded', '0'} end
local fresh = redis.call('SPOP', KEYS[4])
if not fresh then
  if tonumber(state[2]) > tonumber(state[1]) then return {'ok', 'none', '0'} end
  fresh = state[2]
  redis.call('HINCRBY', KEYS[3], 'next', 1)
end
redis.call('HSET', KEYS[2], ARGV[2], table.concat({entry, fresh, rest}, ' '))
return {'ok', 'taken', fresh}
