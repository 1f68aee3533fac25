#!lua flags=no-writes
-- Asks whether the certificate fits, and the queue has its group: without it nothing would ever be
-- read again, so that is as bad as lost data.
--
-- KEYS  1 certificate  2 stream
-- ARGV  1 an epoch (any)  2 group
-- Returns {'uncertified'}, {'stale', epoch}, or {'ok', when the certificate was opened, in ms}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err then return {'uncertified'} end
for _, info in ipairs(groups) do
  if info[2] == ARGV[2] then return {'ok', redis.call('HGET', KEYS[1], 'opened_at') or '0'} end
end
return {'uncertified'}
