#!lua flags=no-writes
-- Whether a share of a coupon has units, or lends some; and what tells a second look whether it gained any since.
--
-- A move that is a dead letter is not on its way: it waits for an operator, and nobody waits for it.
--
-- KEYS  1 certificate  2 coupon  3 holders  4 free  5 dead
-- ARGV  1 credential, then what stands for each other share
-- Returns a certificate fault, or {'ok', now in ms}: the coupon is not loaded, or damaged; or
--       {'ok', now in ms, free units, units that it lends, units that were credited to it, what changes with every gain}
--@certificate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local SOUGHT_MAX = 64 -- members of the free units that are looked at

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.pcall('HMGET', KEYS[2], 'id', 'total', 'next', 'shares', 'credited', 'gains')
local returned, held = redis.pcall('SCARD', KEYS[4]), redis.pcall('HMGET', KEYS[3], unpack(ARGV, 2))
local total, next_serial, shares = whole(state[2]), whole(state[3]), whole(state[4])
local credited, gains = whole(state[5] or '0'), whole(state[6] or '0')
-- All shares but this one are named.
if not (state[1] and total and next_serial and shares == #ARGV and credited and gains and type(returned) == 'number')
  or held.err then
  return {'ok', now}
end
-- A few members are looked at: what is no unit can be neither sold nor moved.
if returned > 0 and returned <= SOUGHT_MAX then
  local units = 0
  for _, member in ipairs(redis.call('SRANDMEMBER', KEYS[4], returned)) do
    if #member < 11 and string.find(member, '^[1-9]%d*$') then units = units + 1 end
  end
  returned = units
end
local lent, dead = 0, redis.pcall('HLEN', KEYS[5])
local is_any_dead = type(dead) == 'number' and dead > 0
for place = 1, #ARGV - 1 do
  local ids = held[place] or ''
  for at = 1, #ids, 16 do
    local is_dead = is_any_dead and redis.call('HEXISTS', KEYS[5], string.sub(ids, at, at + 15)) == 1
    if not is_dead then lent = lent + 1 end
  end
end
local fresh = next_serial <= total and math.floor((total - next_serial) / shares) + 1 or 0
-- The credential names the epoch: gains are counted anew in each.† A larger total is a gain.
return {'ok', now, returned + fresh, lent, credited, table.concat({ARGV[1], total, gains, credited}, ' ')}
