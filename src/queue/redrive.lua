#!lua flags=allow-oom
-- Sends a dead letter through again: its owner becomes a consumer without a heartbeat, so the next
-- live worker claims it.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
-- ARGV  1 epoch  2 group  3 consumer to give it to  4 issuance id (16 bytes)
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', '1' on its way | '0' it is no dead letter}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local value, dead = redis.call('HGET', KEYS[3], ARGV[4]), redis.call('HGET', KEYS[4], ARGV[4])
if not value or not dead then return {'ok', '0'} end
-- Where the in-flight value cannot be read, the dead letter knows the entry.
local entry = string.match(value, '^(%d+%-%d+) ') or string.match(dead, '^(%d+%-%d+) ')
if not entry then return {'ok', '0'} end
redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'JUSTID')
redis.call('HDEL', KEYS[4], ARGV[4])
return {'ok', '1'}
