#!lua flags=allow-oom
-- Deletes a stream entry whose issuance is decided, if it is not in flight with this entry. Others that are in
-- flight with it get entries of their own.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
-- ARGV  1 credential  2 group  3 entry id  4 issuance id (16 bytes)
-- Returns a certificate fault, or {'ok', 'dropped' or 'present'}
--@certificate
--@split
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local value = redis.call('HGET', KEYS[3], ARGV[4])
if value and string.match(value, '^%S+') == ARGV[3] then return {'ok', 'present'} end
split(KEYS[2], KEYS[3], ARGV[2], ARGV[3])
if not value then redis.call('HDEL', KEYS[4], ARGV[4]) end
return {'ok', 'dropped'}
