#!lua flags=allow-oom
-- Ends a worker's heartbeat, so that others take at once what it leaves behind. Its consumer is
-- deleted only if nothing is pending for it: deleting one deletes its pending entries too.
--
-- KEYS  1 certificate  2 stream  3 workers
-- ARGV  1 credential  2 group  3 consumer
-- Returns a certificate fault, or {'ok', how many entries it leaves pending}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local left = #redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', 1000, ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[3])
if left == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3]) end
return {'ok', left}
