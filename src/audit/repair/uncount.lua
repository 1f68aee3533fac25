#!lua flags=allow-oom
-- Takes a rejected issuance out of its user's dedupe, or a move that has ended out of what is on its way to a share, if it
-- is not in flight (again).
--
-- KEYS  1 certificate  2 in-flight  3 coupon  4 holders
-- ARGV  1 credential  2 issuance id (16 bytes)  3 user  4 '1' if the id was made from a key, else '0'
-- Returns a certificate fault, or {'ok', 'uncounted', 'present' or 'unloaded'}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

if redis.call('HEXISTS', KEYS[3], 'id') == 0 then return {'ok', 'unloaded'} end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return {'ok', 'present'} end
local held, rest = redis.call('HGET', KEYS[4], ARGV[3]) or '', {}
for i = 1, #held, 16 do
  local id = string.sub(held, i, i + 15)
  if id ~= ARGV[2] then rest[#rest + 1] = id end
end
if #rest > 0 then
  redis.call('HSET', KEYS[4], ARGV[3], table.concat(rest))
else
  redis.call('HDEL', KEYS[4], ARGV[3])
end
if ARGV[4] == '1' then redis.call('HSET', KEYS[4], '!' .. ARGV[2], '1') end
return {'ok', 'uncounted'}
