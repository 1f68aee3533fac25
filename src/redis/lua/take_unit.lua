-- Takes a unit out of the free ones.
-- Units from the next one on are free by the counter alone; those below the serial join the set. At most
-- `most` of them in one call, for a script must stay short. Whether the unit was taken; else the call must
-- be repeated.
local function take_unit(coupon, free, next_serial, serial, most)
  local last = math.min(serial - 1, next_serial + most - 1)
  for unit = next_serial, last do redis.call('SADD', free, string.format('%.0f', unit)) end
  if last < serial - 1 then
    redis.call('HSET', coupon, 'next', string.format('%.0f', last + 1))
    return false
  end
  if serial >= next_serial then
    redis.call('HSET', coupon, 'next', string.format('%.0f', serial + 1))
  else
    redis.call('SREM', free, string.format('%.0f', serial))
  end
  return true
end
