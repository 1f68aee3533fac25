#!lua flags=allow-oom
-- Gives back units that an audit found nowhere. The token says that no other repair has begun since,
-- and that this one has not done this before: each call leaves the next token, so that one that is
-- repeated, its answer lost, finds the first one's. A unit that is nowhere can be reserved only after
-- it was given back, and only this repair may do that.
--
-- KEYS  1 certificate  2 coupon  3 free
-- ARGV  1 credential  2 token  3 the next token, then units
-- Returns a certificate fault, or {'ok', 'released' or 'superseded'}
--@certificate
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[2], 'audit', 'next', 'total')
if state[1] ~= ARGV[2] then return {'ok', 'superseded'} end
redis.call('SCARD', KEYS[3]) -- an error here, if the key is of a wrong type, is before the first write
redis.call('HSET', KEYS[2], 'audit', ARGV[3])
for at = 4, #ARGV do
  local unit = tonumber(ARGV[at])
  if unit >= SERIALS or unit < tonumber(state[2]) and unit <= tonumber(state[3]) then
    give_back(KEYS[2], KEYS[3], ARGV[at])
  end
end
return {'ok', 'released'}
