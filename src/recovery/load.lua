#!lua flags=allow-oom
-- Puts a coupon into Redis: the only way in. Its holders and free serials were computed from the
-- ledger and what is in flight, and lie in staging keys. Refuses if the coupon is there already, or if
-- any was retired, or records were renamed, since the computing began, so that a loader that slept cannot
-- put an old picture over a new one.
--
-- KEYS  1 certificate  2 counters  3 loaded coupons  4 coupon  5 holders  6 free
--       7 staged holders  8 staged free
-- ARGV  1 epoch, and its term if it is open  2 '1' if the epoch is being built, '0' if it is open  3 staged holders  4 staged free
--       5 how often that had happened when the computing began, then field, value, … of the coupon
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', what}: what is
--   'loaded', 'present', 'retired' (it happened meanwhile) or 'incomplete' (the staging keys have expired);
--   nothing was done but for the first
--@certificate
if ARGV[2] == '1' then
  if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] then return {'uncertified'} end
else
  local fault = certificate_fault(KEYS[1], ARGV[1])
  if fault then return fault end
end
local refused
if redis.call('EXISTS', KEYS[4]) == 1 then
  refused = 'present'
elseif (redis.call('HGET', KEYS[2], 'retired') or '0') ~= ARGV[5] then
  refused = 'retired'
elseif redis.call('HLEN', KEYS[7]) ~= tonumber(ARGV[3]) or redis.call('SCARD', KEYS[8]) ~= tonumber(ARGV[4]) then
  refused = 'incomplete'
end
if refused then
  redis.call('UNLINK', KEYS[7], KEYS[8])
  return {'ok', refused}
end
redis.call('UNLINK', KEYS[5], KEYS[6])
for from = 7, 8 do
  if redis.call('PERSIST', KEYS[from]) == 1 then redis.call('RENAME', KEYS[from], KEYS[from - 2]) end
end
redis.call('HSET', KEYS[4], unpack(ARGV, 6))
redis.call('SADD', KEYS[3], redis.call('HGET', KEYS[4], 'id'))
return {'ok', 'loaded'}
