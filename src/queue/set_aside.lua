#!lua flags=allow-oom
-- Sets an entry aside as a dead letter: it stays the same stream entry, pending, in flight and in its
-- user's dedupe; only its owner changes, and why is written down. So does one whose in-flight value cannot
-- be read, if the stream has its entry.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
-- ARGV  1 epoch  2 group  3 consumer of dead letters  4 entry id  5 issuance id (16 bytes)
--       6 attempts  7 why
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', '1' set aside | '0' it is not in flight with this entry}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local value = redis.call('HGET', KEYS[3], ARGV[5])
if not value then return {'ok', '0'} end
local named = string.match(value, '^(%d+%-%d+) ')
if not named then
  local found = redis.call('XRANGE', KEYS[2], ARGV[4], ARGV[4])[1]
  named = found and string.sub(found[2][2] or '', 1, 16) == ARGV[5] and ARGV[4]
end
if named ~= ARGV[4] then return {'ok', '0'} end
redis.call('HLEN', KEYS[4]) -- an error here, if the key is of a wrong type, is before the first write
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, ARGV[4], 'JUSTID')
redis.call('HSET', KEYS[4], ARGV[5], table.concat({ARGV[4], now, ARGV[6], ARGV[7]}, ' '))
return {'ok', '1'}
