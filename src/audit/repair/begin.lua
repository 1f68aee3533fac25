#!lua flags=allow-oom
-- Begins a repair of a coupon: from here on the repairs that began before are turned away.
--
-- KEYS  1 certificate  2 coupon
-- ARGV  1 credential  2 token of this repair
-- Returns a certificate fault, or {'ok', 'begun' or 'unloaded'}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

if redis.call('HEXISTS', KEYS[2], 'id') == 0 then return {'ok', 'unloaded'} end
redis.call('HSET', KEYS[2], 'audit', ARGV[2])
return {'ok', 'begun'}
