#!lua flags=allow-oom
-- Makes every load of a coupon that is being computed begin anew (load.lua refuses it), because records
-- were renamed since it read them.
--
-- KEYS  1 certificate  2 counters
-- ARGV  1 credential
-- Returns a certificate fault, or {'ok', 'outdated'}
--@certificate
--@outdate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

outdate(KEYS[2], 'retired', 1)
return {'ok', 'outdated'}
