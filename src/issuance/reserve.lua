#!lua
-- Takes units for a batch of requests and queues an issuance for each that gets one.
-- Everything is read and decided for the whole batch before the first write: an error in the middle
-- of a script is not rolled back. Without the flag allow-oom Redis refuses it when memory runs out.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters
--       then for each coupon: coupon, holders, free
-- ARGV  1 epoch  2 the largest backlog
--       then for each request: number of its coupon (1 is the first), user, issuance id (16 bytes),
--       '1' if the id was made from a key, else '0'
-- Returns {'uncertified'} or {'stale', epoch}, or
--       {'ok', now in ms, sequence numbers given before, settled, dead, answer, …}, each answer
--   'A'                       accepted; its sequence number is the next one
--   'R' id value              replay of an issuance in flight, and its in-flight value
--   'K' id                    replay by key of one that was issued
--   'J' id                    replay by key of one that was rejected
--   'H' n held in-flight      as many as the limit allows: n (one byte) ids held, then those in flight
--   'S' sold out   'E' ended   'P' paused (it, or the whole service)   'X' archived   'L' coupon not loaded   'B' backlog full
--   'N' startsAt in ms        not started
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('HLEN', KEYS[4])
local backlog = redis.call('HLEN', KEYS[3]) - dead
local backlog_max = tonumber(ARGV[2])
local counters = redis.call('HMGET', KEYS[5], 'accepted', 'settled', 'paused')
local sequence = tonumber(counters[1] or 0)
redis.call('XLEN', KEYS[2]) -- an error here, if the key is of a wrong type, is before the first write

-- Read: what every coupon is, and what its users hold.
local coupons, answers = {}, {}
for item = 1, (#ARGV - 2) / 4 do
  local at = 3 + (item - 1) * 4
  local number = tonumber(ARGV[at])
  local coupon = coupons[number]
  if not coupon then
    local key = 6 + (number - 1) * 3
    coupon = {key = KEYS[key], holders = KEYS[key + 1], free = KEYS[key + 2],
              fields = {}, items = {}, entries = {}, next_free = 1, taken = 0}
    coupons[number] = coupon
  end
  local fields = coupon.fields
  fields[#fields + 1] = ARGV[at + 1]
  if ARGV[at + 3] == '1' then fields[#fields + 1] = '!' .. ARGV[at + 2] end
  coupon.items[#coupon.items + 1] = item
end
for _, coupon in pairs(coupons) do
  local state = redis.call('HMGET', coupon.key,
    'id', 'total', 'next', 'per_user', 'starts_at', 'ends_at', 'paused', 'archived')
  coupon.id = state[1]
  if coupon.id then
    coupon.total, coupon.next, coupon.per_user = tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
    coupon.starts_at, coupon.ends_at = tonumber(state[5]), tonumber(state[6])
    coupon.paused, coupon.archived = state[7] == '1', state[8] == '1'
    local held = redis.call('HMGET', coupon.holders, unpack(coupon.fields))
    coupon.held = {}
    for i, field in ipairs(coupon.fields) do coupon.held[field] = held[i] or nil end
    coupon.free_serials = redis.call('SRANDMEMBER', coupon.free, #coupon.items)
  end
end

-- Decide.
local accepted = {} -- in order: {coupon, user, id, serial, nth}
local in_flight_now = {} -- ids accepted in this very batch → their place in `accepted`

local function in_flight_value(id)
  local place = in_flight_now[id]
  if place then return place end
  return redis.call('HGET', KEYS[3], id)
end

local function at_limit(held, count)
  local issued, waiting = {}, {}
  for i = 1, count do
    local other = string.sub(held, i * 16 - 15, i * 16)
    local kind = in_flight_value(other) and waiting or issued
    kind[#kind + 1] = other
  end
  return 'H' .. string.char(#issued) .. table.concat(issued) .. table.concat(waiting)
end

local function decide(coupon, user, id, keyed)
  if not coupon.id then return 'L' end
  local held = coupon.held[user] or ''
  local count = #held / 16
  for i = 1, count do
    if string.sub(held, i * 16 - 15, i * 16) == id then
      local value = in_flight_value(id)
      if value then return {'R', id, value} end
      return 'K' .. id
    end
  end
  if keyed then
    if coupon.held['!' .. id] then return 'J' .. id end
  else
    for i = count, 1, -1 do
      local other = string.sub(held, i * 16 - 15, i * 16)
      local value = in_flight_value(other)
      if value then return {'R', other, value} end
    end
  end
  if count >= coupon.per_user then return at_limit(held, count) end
  if coupon.archived then return 'X' end
  if now >= coupon.ends_at then return 'E' end
  if coupon.paused or counters[3] == '1' then return 'P' end
  if now < coupon.starts_at then return 'N' .. string.format('%.0f', coupon.starts_at) end
  if backlog + #accepted >= backlog_max then return 'B' end
  local serial = coupon.free_serials[coupon.next_free]
  if serial then
    coupon.next_free = coupon.next_free + 1
  elseif coupon.next + coupon.taken <= coupon.total then
    serial = string.format('%.0f', coupon.next + coupon.taken)
    coupon.taken = coupon.taken + 1
  else
    return 'S'
  end
  coupon.held[user] = held .. id
  accepted[#accepted + 1] = {coupon, user, id, serial, count + 1}
  in_flight_now[id] = #accepted
  return 'A'
end

for item = 1, (#ARGV - 2) / 4 do
  local at = 3 + (item - 1) * 4
  answers[item] = decide(coupons[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3] == '1')
end

-- Write.
if #accepted > 0 then
  local in_flight = {}
  for place, unit in ipairs(accepted) do
    local coupon, user, id, serial, nth = unpack(unit)
    local order = string.format('%.0f', sequence + place)
    local at = string.format('%.0f', now)
    local entry = redis.call('XADD', KEYS[2], '*', 'v', '1', 'id', id, 'coupon', coupon.id, 'user', user,
      'serial', serial, 'nth', nth, 'at', at)
    local value = table.concat({entry, serial, order, at, nth, coupon.id, user}, ' ')
    in_flight[#in_flight + 1] = id
    in_flight[#in_flight + 1] = value
    unit[6] = value
    coupon.entries[#coupon.entries + 1] = user
    coupon.entries[#coupon.entries + 1] = coupon.held[user]
  end
  redis.call('HSET', KEYS[3], unpack(in_flight))
  redis.call('HSET', KEYS[5], 'accepted', string.format('%.0f', sequence + #accepted))
  for _, coupon in pairs(coupons) do
    if #coupon.entries > 0 then
      redis.call('HSET', coupon.holders, unpack(coupon.entries))
      if coupon.taken > 0 then redis.call('HINCRBY', coupon.key, 'next', coupon.taken) end
      if coupon.next_free > 1 then
        redis.call('SREM', coupon.free, unpack(coupon.free_serials, 1, coupon.next_free - 1))
      end
    end
  end
end

local reply = {'ok', now, sequence, tonumber(counters[2] or 0), dead}
for item, answer in ipairs(answers) do
  if type(answer) == 'table' then
    local value = answer[3]
    if type(value) == 'number' then value = accepted[value][6] end
    answer = answer[1] .. answer[2] .. value
  end
  reply[item + 5] = answer
end
return reply
