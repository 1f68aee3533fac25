#!lua flags=allow-oom
-- Credits a share of a coupon with units that were moved to it: the ledger has each move. Once an id: a move that was
-- credited may have been issued, and moved on, since.†
--
-- KEYS  1 certificate  2 coupon  3 holders  4 free
-- ARGV  1 credential, then for each move: id (16 bytes), unit as this share knows it
-- Returns a certificate fault, or {'ok', '1' if the coupon is loaded or '0' (a load finds the moves in the ledger), how many
--       units were credited now}
--@certificate
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

if redis.call('HEXISTS', KEYS[2], 'id') == 0 then return {'ok', '0', 0} end
-- An error in one of these, if a key or a field is of a wrong type, is before the first write.
redis.call('HLEN', KEYS[3])
redis.call('SCARD', KEYS[4])
local counts = redis.call('HMGET', KEYS[2], 'credited', 'gains')
for place = 1, 2 do
  if counts[place] and not string.match(counts[place], '^%d+$') then return redis.error_reply('WRONGTYPE a count of moved units') end
end
local fresh = {}
for at = 2, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[3], '+' .. ARGV[at], ARGV[at + 1]) == 1 then fresh[#fresh + 1] = ARGV[at + 1] end
end
if #fresh > 0 then
  redis.call('HINCRBY', KEYS[2], 'credited', #fresh)
  give_back(KEYS[2], KEYS[4], unpack(fresh))
end
return {'ok', '1', #fresh}
