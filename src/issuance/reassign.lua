#!lua flags=allow-oom
-- Gives an issuance in flight a fresh unit, because another issuance holds its old one in the
-- ledger. The old one is never given back: it is taken.
-- Compare-and-set on the stream entry and the old serial: of two workers, one reassigns. One in flight
-- without a serial gets one, whatever its stream entry named.
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 free
-- ARGV  1 credential  2 issuance id (16 bytes)  3 entry id  4 the old serial ('0' for none)
-- Returns a certificate fault, or {'ok', what, serial}: what is
--   'taken' (serial is fresh), 'changed' (another worker was first; serial is the one in flight),
--   'none' (no unit is free), 'dry' (none is free here, and another share may have one), 'gone' (this entry is no longer in flight),
--   'unloaded' (the coupon is not loaded, which cannot be while it has something in flight),
--   'unreadable' (the in-flight value cannot be read, and names this entry or none) or 'damaged' (the state of
--   the coupon does not tell which units are free)
--@certificate
--@units
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local SOUGHT_MAX = 64 -- members of the free units that are read to find a unit

local function is_unit(text) return text and #text < 11 and string.find(text, '^[1-9]%d*$') end

local value = redis.call('HGET', KEYS[2], ARGV[2])
local named = value and string.match(value, '^(%d+%-%d+) ')
if not value or named and named ~= ARGV[3] then return {'ok', 'gone', '0'} end
local entry, serial, rest = string.match(value, '^(%d+%-%d+) (%d+) (%d+ %d+ %d+ %S+ %S+)$')
if not entry then return {'ok', 'unreadable', '0'} end
if serial ~= ARGV[4] and serial ~= '0' then return {'ok', 'changed', serial} end

local state = redis.call('HMGET', KEYS[3], 'total', 'next', 'id', 'shares', 'drained_until')
if not state[1] and not state[2] and not state[3] then return {'ok', 'unloaded', '0'} end
if not (is_unit(state[1]) or state[1] == '0') or not is_unit(state[2]) or not is_unit(state[4] or '1') then return {'ok', 'damaged', '0'} end
local free, fresh = redis.call('SRANDMEMBER', KEYS[4], SOUGHT_MAX), nil
for _, unit in ipairs(free) do
  if is_unit(unit) then fresh = unit end
end
if fresh then
  redis.call('SREM', KEYS[4], fresh)
elseif tonumber(state[2]) <= tonumber(state[1]) then
  fresh = state[2]
  redis.call('HSET', KEYS[3], 'next', string.format('%.0f', fresh + (state[4] or 1)))
elseif #free < SOUGHT_MAX then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local is_known = not state[4] or state[4] == '1' or is_drained(whole(state[5]), now)
  return {'ok', is_known and 'none' or 'dry', '0'}
else
  return {'ok', 'damaged', '0'}
end
redis.call('HSET', KEYS[2], ARGV[2], table.concat({entry, fresh, rest}, ' '))
return {'ok', 'taken', fresh}
