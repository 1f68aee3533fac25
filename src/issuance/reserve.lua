#!lua
-- Takes units for a batch of requests and queues an issuance for each that gets one.
-- Everything is read and decided for the whole batch before the first write: an error in the middle
-- of a script is not rolled back. Without the flag allow-oom Redis refuses it when memory runs out.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters
--       then for each coupon: coupon, holders, free
-- ARGV  1 epoch  2 the largest backlog
--       then for each coupon: how many requests, then for each: user, issuance id (16 bytes)
-- Returns {'uncertified'} or {'stale', epoch}, or
--       {'ok', now in ms, sequence numbers given before, settled, dead, answers}: one string, in which
--       each answer is a letter; where more follows it, that comes with its length: 'K16:…'
--   A              accepted; its sequence number is the next one
--   R id value     replay of an issuance in flight, and its in-flight value ('-' for the entry
--                  of one that was accepted in this very batch)
--   K id           replay by key of one that was issued
--   J id           replay by key of one that was rejected
--   H n held in-flight   as many as the limit allows: n (one byte) ids held, then those in flight
--   S sold out   E ended   P paused (it, or the whole service)   X archived   L coupon not loaded   B backlog full
--   N startsAt in ms     not started
--
-- Hot: what is done for each request is done with as few calls, new strings and tables as possible.
-- (Numbers are written with %d: Lua's own way is the slow %.14g.)
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local call, byte, sub, format, concat = redis.call, string.byte, string.sub, string.format, table.concat
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = format('%d', now)
local dead = call('HLEN', KEYS[4])
local room = tonumber(ARGV[2]) - call('HLEN', KEYS[3]) + dead
local counters = call('HMGET', KEYS[5], 'accepted', 'settled', 'paused')
local sequence = tonumber(counters[1] or 0)
call('XLEN', KEYS[2]) -- an error here, if the key is of a wrong type, is before the first write

local accepted, accepted_ids, accepted_values = 0, {}, {} -- in order; values but for the entry
local answers, answered = {}, 0
local settled = tonumber(counters[2] or 0)

-- An id from a key is a UUIDv8, any other a UUIDv7.
local function is_keyed(id) return byte(id, 7) >= 128 end

local function long(letter, rest) return letter .. #rest .. ':' .. rest end

-- With `fresh`, the user got one in this very batch.
local function in_flight_value(id, fresh)
  if fresh then
    for place = 1, accepted do
      if accepted_ids[place] == id then return '- ' .. accepted_values[place] end
    end
  end
  return call('HGET', KEYS[3], id)
end

local function at_limit(held, fresh)
  local issued, waiting = {}, {}
  for i = 1, #held, 16 do
    local other = sub(held, i, i + 15)
    local kind = in_flight_value(other, fresh) and waiting or issued
    kind[#kind + 1] = other
  end
  return long('H', string.char(#issued) .. concat(issued) .. concat(waiting))
end

-- The answer to somebody who holds something, or has it in flight, or has used a key; nil if they may
-- have one more.
local function deduplicated(held, id, rejected, per_user, fresh)
  for i = 1, #held, 16 do
    if sub(held, i, i + 15) == id then
      local value = in_flight_value(id, fresh)
      return value and long('R', id .. value) or long('K', id)
    end
  end
  if is_keyed(id) then
    if rejected then return long('J', id) end
  else
    for i = #held - 15, 1, -16 do
      local other = sub(held, i, i + 15)
      local value = in_flight_value(other, fresh)
      if value then return long('R', other .. value) end
    end
  end
  if #held >= per_user * 16 then return at_limit(held, fresh) end
end

-- Why nobody can have this coupon now; nil if they can.
local function closed(state)
  if state[8] == '1' then return 'X' end
  if now >= tonumber(state[6]) then return 'E' end
  if state[7] == '1' or counters[3] == '1' then return 'P' end
  if now < tonumber(state[5]) then return long('N', state[5]) end
end

-- Decides the requests ARGV[first], …, ARGV[last] for one coupon, and returns what is to be written.
local function decide(key, first, last)
  local count = (last - first + 1) / 2
  local state = call('HMGET', KEYS[key],
    'id', 'total', 'next', 'per_user', 'starts_at', 'ends_at', 'paused', 'archived')
  if not state[1] then
    for place = 1, count do answers[answered + place] = 'L' end
    answered = answered + count
    return nil
  end
  local fields, keyed = {}, nil
  for place = 1, count do
    fields[place] = ARGV[first + place * 2 - 2]
    local id = ARGV[first + place * 2 - 1]
    if is_keyed(id) then
      keyed = keyed or {}
      keyed[#keyed + 1] = id
    end
  end
  local rejected = {} -- ids from keys that were rejected
  if keyed then
    for place, id in ipairs(keyed) do fields[count + place] = '!' .. id end
  end
  local found = call('HMGET', KEYS[key + 1], unpack(fields))
  if keyed then
    for place, id in ipairs(keyed) do rejected[id] = found[count + place] end
  end
  local free = call('SRANDMEMBER', KEYS[key + 2], count)

  local coupon, total, next_serial, per_user = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
  local refused = closed(state)
  local taken = {} -- users who got one in this very batch → all they hold
  local holders, holders_count, freed, fresh = {}, 0, 0, 0
  for place = 1, count do
    local user, id, answer = fields[place], ARGV[first + place * 2 - 1], nil
    local holds = taken[user] or found[place]
    if holds or is_keyed(id) then answer = deduplicated(holds or '', id, rejected[id], per_user, taken[user]) end
    answer = answer or refused
    if not answer and accepted >= room then answer = 'B' end
    if not answer then
      local serial = free[freed + 1]
      if serial then
        freed = freed + 1
      elseif next_serial + fresh <= total then
        serial = format('%d', next_serial + fresh)
        fresh = fresh + 1
      end
      if serial then
        accepted = accepted + 1
        holds = holds and holds .. id or id
        taken[user] = holds
        accepted_ids[accepted] = id
        accepted_values[accepted] =
          format('%s %d %s %d %s %s', serial, sequence + accepted, at, #holds / 16, coupon, user)
        holders[holders_count + 1], holders[holders_count + 2] = user, holds
        holders_count = holders_count + 2
        answer = 'A'
      else
        answer = 'S'
      end
    end
    answers[answered + place] = answer
  end
  answered = answered + count
  return holders_count > 0 and {key = key, holders = holders, free = free, freed = freed, fresh = fresh}
end

local changed = {}
local arg, key = 3, 6
while arg <= #ARGV do
  local last = arg + ARGV[arg] * 2
  changed[#changed + 1] = decide(key, arg + 1, last) or nil
  arg, key = last + 1, key + 3
end

-- Write.
if accepted > 0 then
  local in_flight = {}
  for place = 1, accepted do
    local id, value = accepted_ids[place], accepted_values[place]
    in_flight[place * 2 - 1] = id
    in_flight[place * 2] = call('XADD', KEYS[2], '*', '2', id .. value) .. ' ' .. value
  end
  call('HSET', KEYS[3], unpack(in_flight))
  call('HSET', KEYS[5], 'accepted', format('%d', sequence + accepted))
  for _, coupon in ipairs(changed) do
    call('HSET', KEYS[coupon.key + 1], unpack(coupon.holders))
    if coupon.fresh > 0 then call('HINCRBY', KEYS[coupon.key], 'next', coupon.fresh) end
    if coupon.freed > 0 then call('SREM', KEYS[coupon.key + 2], unpack(coupon.free, 1, coupon.freed)) end
  end
end
return {'ok', now, sequence, settled, dead, concat(answers)}
