#!lua flags=no-writes
-- Asks whether the certificate fits, and the queue has its group: without it nothing would ever be
-- read again, so that is as bad as lost data. So is a key of the whole queue that is of a wrong type.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters  6 loaded coupons
-- ARGV  1 credential  2 group
-- Returns a certificate fault, or {'ok', when the certificate was opened, in ms}; {'uncertified'} where one of those fails
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

for key, wanted in pairs({[3] = 'hash', [4] = 'hash', [5] = 'hash', [6] = 'set'}) do
  local kind = redis.call('TYPE', KEYS[key]).ok
  if kind ~= wanted and kind ~= 'none' then return {'uncertified'} end
end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err then return {'uncertified'} end
for _, info in ipairs(groups) do
  if info[2] == ARGV[2] then return {'ok', redis.call('HGET', KEYS[1], 'opened_at') or '0'} end
end
return {'uncertified'}
