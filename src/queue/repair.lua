#!lua flags=allow-oom
-- Replaces an in-flight value that cannot be read: compare-and-set on the value. A value that is gone is put back
-- only for a dead letter, because settling an issuance removes its dead letter too.
--
-- KEYS  1 certificate  2 in-flight  3 dead
-- ARGV  1 credential  2 issuance id (16 bytes)  3 what is in flight for it ('' if nothing is)  4 the value to keep
-- Returns a certificate fault, or {'ok', '1' replaced | '0' the value has changed}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local value = redis.call('HGET', KEYS[2], ARGV[2])
if (value or '') ~= ARGV[3] then return {'ok', '0'} end
if not value and redis.call('HEXISTS', KEYS[3], ARGV[2]) == 0 then return {'ok', '0'} end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
return {'ok', '1'}
