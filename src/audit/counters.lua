#!lua flags=allow-oom
-- Names the counts of the queue that cannot be read, and sets them anew if asked to: what is accepted and not
-- settled is in flight.
--
-- KEYS  1 certificate  2 counters  3 in-flight
-- ARGV  1 credential  2 '1' to set them, else '0'
-- Returns a certificate fault, or {'ok', field, …}: those that could not be read
--@certificate
--@outdate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local FIELDS = {'accepted', 'settled', 'retired', 'settled_unloaded'}
local held = redis.call('HMGET', KEYS[2], unpack(FIELDS))
local reply, damaged = {'ok'}, {}
for place, field in ipairs(FIELDS) do
  if held[place] and not whole(held[place]) then
    reply[#reply + 1] = field
    damaged[field] = true
  end
end
if ARGV[2] == '1' then
  local waiting = redis.call('HLEN', KEYS[3])
  local settled = whole(held[2]) or math.max(0, (whole(held[1]) or waiting) - waiting)
  if damaged.settled then redis.call('HSET', KEYS[2], 'settled', string.format('%.0f', settled)) end
  if damaged.accepted then redis.call('HSET', KEYS[2], 'accepted', string.format('%.0f', settled + waiting)) end
  for _, field in ipairs({'retired', 'settled_unloaded'}) do
    if damaged[field] then outdate(KEYS[2], field, 1) end
  end
end
return reply
