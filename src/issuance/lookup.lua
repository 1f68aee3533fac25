#!lua flags=no-writes
-- Looks issuances up in the in-flight hash. A miss is certain: the issuance was not accepted, or is settled.
--
-- KEYS  1 certificate  2 in-flight  3 dead  4 counters
-- ARGV  1 credential, then issuance ids (16 bytes each)
-- Returns a certificate fault, or
--       {'ok', now in ms, settled, dead, value, …}, each the in-flight value or ''
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local values = redis.call('HMGET', KEYS[2], unpack(ARGV, 2))
-- An empty value is damaged, and no miss.
for i = 1, #values do values[i] = values[i] == '' and ' ' or values[i] or '' end
-- Only an estimate uses it.
local settled = redis.call('HGET', KEYS[4], 'settled')
settled = settled and #settled < 16 and string.match(settled, '^%d+$') or '0'
return {'ok', time[1] * 1000 + math.floor(time[2] / 1000), tonumber(settled), redis.call('HLEN', KEYS[3]), unpack(values)}
