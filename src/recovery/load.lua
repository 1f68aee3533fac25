#!lua flags=allow-oom
-- Puts a coupon into Redis: the only way in. Its holders and free serials were computed from the
-- ledger and what is in flight, and lie in staging keys. Refuses if the coupon is there already, so
-- that a loader that slept cannot put an old picture over a new one.
--
-- KEYS  1 certificate  2 coupon  3 holders  4 free  5 staged holders  6 staged free
-- ARGV  1 epoch  2 '1' if the epoch is being built, '0' if it is open  3 staged holders  4 staged free
--       then field, value, … of the coupon
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', what}: what is
--   'loaded', 'present' (nothing was done) or 'incomplete' (the staging keys have expired)
--@certificate
if ARGV[2] == '1' then
  if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] then return {'uncertified'} end
else
  local fault = certificate_fault(KEYS[1], ARGV[1])
  if fault then return fault end
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('UNLINK', KEYS[5], KEYS[6])
  return {'ok', 'present'}
end
if redis.call('HLEN', KEYS[5]) ~= tonumber(ARGV[3]) or redis.call('SCARD', KEYS[6]) ~= tonumber(ARGV[4]) then
  redis.call('UNLINK', KEYS[5], KEYS[6])
  return {'ok', 'incomplete'}
end
redis.call('UNLINK', KEYS[3], KEYS[4])
for from = 5, 6 do
  if redis.call('PERSIST', KEYS[from]) == 1 then redis.call('RENAME', KEYS[from], KEYS[from - 2]) end
end
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
return {'ok', 'loaded'}
