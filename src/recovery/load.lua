#!lua flags=allow-oom
-- Puts a coupon into Redis: the only way in. Its holders and free serials were computed from the
-- ledger and what is in flight, and lie in staging keys. Refuses if the coupon is there already; if
-- any was retired, or records were renamed, since the computing began, so that a loader that slept cannot
-- put an old picture over a new one; and, where something of the coupon is in flight, if anything of a
-- coupon that is not loaded was settled since then: that is what could have left the in-flight hash.
--
-- KEYS  1 certificate  2 counters  3 loaded coupons  4 coupon  5 holders  6 free
--       7 staged holders  8 staged free  9 in-flight
-- ARGV  1 credential, or the epoch alone while it is being built  2 '1' if it is being built, '0' if it is open
--       3 staged holders  4 staged free
--       5 how often that had happened when the computing began
--       6 '=' and how many of coupons that were not loaded had been settled then, '' if nothing is in flight
--       7 how many in flight have a unit that is another's, then their ids (16 bytes each): they are left
--       without one; then field, value, … of the coupon
-- Returns a certificate fault, or {'ok', what}: what is
--   'loaded', 'present', 'retired' (it happened meanwhile), 'settled' (likewise) or 'incomplete' (the staging
--   keys have expired); nothing was done but for the first
--@certificate
if ARGV[2] == '1' then
  if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] then return {'uncertified'} end
else
  local fault = certificate_fault(KEYS[1], ARGV[1])
  if fault then return fault end
end
local since = redis.call('HMGET', KEYS[2], 'retired', 'settled_unloaded')
redis.call('SCARD', KEYS[3]) -- an error here, if the key is of a wrong type, is before the first write
local refused
-- What lies there without an id, or is no hash, is no loaded coupon to any script.
if redis.pcall('HEXISTS', KEYS[4], 'id') == 1 then
  refused = 'present'
elseif (since[1] or '0') ~= ARGV[5] then
  refused = 'retired'
elseif ARGV[6] ~= '' and '=' .. (since[2] or '0') ~= ARGV[6] then
  refused = 'settled'
elseif redis.call('HLEN', KEYS[7]) ~= tonumber(ARGV[3]) or redis.call('SCARD', KEYS[8]) ~= tonumber(ARGV[4]) then
  refused = 'incomplete'
end
if refused then
  redis.call('UNLINK', KEYS[7], KEYS[8])
  return {'ok', refused}
end
redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6])
for from = 7, 8 do
  if redis.call('PERSIST', KEYS[from]) == 1 then redis.call('RENAME', KEYS[from], KEYS[from - 2]) end
end
local fields = 8 + tonumber(ARGV[7])
for at = 8, fields - 1 do
  local value = redis.call('HGET', KEYS[9], ARGV[at])
  local entry, rest = string.match(value or '', '^(%S+) %S+ (.+)$')
  if entry then redis.call('HSET', KEYS[9], ARGV[at], entry .. ' 0 ' .. rest) end
end
redis.call('HSET', KEYS[4], unpack(ARGV, fields))
redis.call('SADD', KEYS[3], redis.call('HGET', KEYS[4], 'id'))
return {'ok', 'loaded'}
