-- Units of a coupon, of which this partition may have a share (ids/share.rs, ids/unit.rs). `shares` is the number of shares,
-- the field of the coupon: missing of a coupon that has one. The serials that are born here are handed out in steps of it.
local SERIALS = 16777216 -- serials are below; a unit that was moved here is above, and free only as a member of the set

-- How many units came into being here and are not free any more: handed out by the counter, or moved here.
local function taken(next_serial, shares, credited, free)
  return math.floor((next_serial - 1) / shares) + credited - free
end

-- Whether a share may say for all shares that they are sold out, as it was told to until a moment. One that is further away
-- than any that is told was told before the clock was set back: it says nothing. (`reserve.lua` has it too.)
local DRAINED_FOR = 500
local function is_drained(until_when, now)
  return until_when and until_when > now and until_when <= now + DRAINED_FOR
end

-- Whether a unit is free: the counter will hand it out, or it is free again.
local function is_free(free, next_serial, unit)
  local number = tonumber(unit)
  return number >= next_serial and number < SERIALS or redis.call('SISMEMBER', free, unit) == 1
end

-- Makes units free. Whoever asks twice whether the coupon is sold out must see that there was one between
-- (issuance/shares/look.lua).†
local function give_back(coupon, free, ...)
  redis.call('SADD', free, ...)
  redis.call('HINCRBY', coupon, 'gains', 1)
end

-- Takes a unit out of the free ones.
-- Units from the next one on are free by the counter alone; those below the unit join the set. At most `most` of them
-- in one call, for a script must stay short. Returns the next serial, or nil if the call must be repeated.
local function take_unit(coupon, free, shares, next_serial, unit, most)
  if unit < next_serial or unit >= SERIALS or (unit - next_serial) % shares ~= 0 then
    redis.call('SREM', free, string.format('%.0f', unit))
    return next_serial
  end
  local skipped = math.min((unit - next_serial) / shares, most)
  for nth = 0, skipped - 1 do redis.call('SADD', free, string.format('%.0f', next_serial + nth * shares)) end
  next_serial = next_serial + skipped * shares
  local is_reached = next_serial == unit
  if is_reached then next_serial = unit + shares end
  redis.call('HSET', coupon, 'next', string.format('%.0f', next_serial))
  return is_reached and next_serial or nil
end
