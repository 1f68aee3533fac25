#!lua flags=allow-oom
-- Brings what Redis counts for a user under a pseudonym. Only issuances that the ledger has issued; while
-- any of the user's is in flight nothing is done. "copy" leaves them under the user too, because the
-- ledger's records are renamed only after it, and the accounts are compared name by name; "move", after
-- it, takes them away. Idempotent. From then on a key that made such an issuance is used up: a new user
-- with the same id must not be answered with it.
--
-- KEYS  1 certificate  2 in-flight, then for each coupon: holders
-- ARGV  1 credential  2 user  3 pseudonym  4 'copy' or 'move'
--       then for each coupon: the issued ids (16 bytes each)
-- Returns a certificate fault, or {'ok', what}: what is
--   'done', 'in-flight' (nothing was done), or 'left' (done, and of a moved user there is more than the
--   ledger has issued)
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local user, pseudonym, moves = ARGV[2], ARGV[3], ARGV[4] == 'move'

local function ids_of(held)
  local ids = {}
  for i = 1, #held, 16 do ids[#ids + 1] = string.sub(held, i, i + 15) end
  return ids
end

-- Read everything first: an error here is before the first write.
local found = {}
for key = 3, #KEYS do
  local held = redis.call('HMGET', KEYS[key], user, pseudonym)
  if held[1] then
    local ids = ids_of(held[1])
    for _, id in ipairs(ids) do
      if redis.call('HEXISTS', KEYS[2], id) == 1 then return {'ok', 'in-flight'} end
    end
    found[#found + 1] = {key = KEYS[key], ids = ids, under = held[2] or '', issued = ARGV[key + 2]}
  end
end

local left = false
for _, coupon in ipairs(found) do
  local issued, known, rest = {}, {}, {}
  for _, id in ipairs(ids_of(coupon.issued)) do issued[id] = true end
  for _, id in ipairs(ids_of(coupon.under)) do known[id] = true end
  local under = coupon.under
  for _, id in ipairs(coupon.ids) do
    if issued[id] then
      if not known[id] then under = under .. id end
      known[id] = true
      if string.byte(id, 7) >= 128 then redis.call('HSET', coupon.key, '!' .. id, '1') end
    else
      rest[#rest + 1] = id
    end
  end
  if under ~= '' then redis.call('HSET', coupon.key, pseudonym, under) end
  if moves and #rest == 0 then redis.call('HDEL', coupon.key, user) end
  if moves and #rest > 0 then redis.call('HSET', coupon.key, user, table.concat(rest)) end
  left = left or #rest > 0
end
return {'ok', left and 'left' or 'done'}
