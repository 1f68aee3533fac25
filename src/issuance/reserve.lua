#!lua
-- Takes units for a batch of requests and queues an issuance for each that gets one.
-- Everything is read and decided for the whole batch before the first write: an error in the middle
-- of a script is not rolled back. Without the flag allow-oom Redis refuses it when memory runs out.
-- What is damaged of one coupon or one user is told to those who ask for it, and to nobody else: the
-- script fails only where a key of the whole queue is of a wrong type.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters
--       then for each coupon: coupon, holders, free; then the two hashes of used keys
-- ARGV  1 epoch  2 the largest backlog
--       then for each coupon: how many requests, then for each: user, issuance id (16 bytes) and, if it
--       is made of a key, the tag of the key (8 bytes) behind it
-- Returns {'uncertified'} or {'stale', epoch}, or
--       {'ok', now in ms, sequence numbers given before, settled, dead, answers}: one string, in which
--       each answer is a letter; where more follows it, that comes with its length: 'K16:…'
--   A              accepted; its sequence number is the next one
--   R id value     replay of an issuance in flight, and its in-flight value ('0-0' for the entry
--                  of one that was accepted in this very batch), readable or not
--   K id           replay by key of one that was issued
--   J id           replay by key of one that was rejected
--   U              its key was accepted for another coupon
--   H n held in-flight   as many as the limit allows: n (one byte) ids held, then those in flight, of
--                  the newest TOLD_MAX
--   S sold out   E ended   P paused (it, or the whole service)   X archived   L coupon not loaded   B backlog full
--   N startsAt in ms     not started
--   D what         nobody can tell: this is damaged
--
-- Hot: what is done for each request is done with as few calls, new strings and tables as possible.
-- (Numbers are written with %d: Lua's own way is the slow %.14g.)
--@certificate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local TOLD_MAX = 20  -- ids in one answer
local HELD_MAX = 200 -- ids of one user: more than any limit allows
-- Requests that are accepted between two turns of the hashes of used keys: the one that is filled remembers
-- the keys of this turn, the other those of the turn before.
local KEYS_REMEMBERED = 250000

local call, pcall = redis.call, redis.pcall
local byte, find, sub, format, concat = string.byte, string.find, string.sub, string.format, table.concat

-- A moment, in ms, or a limit as it is kept: as `whole`, but a moment may be negative.
local function integer(text) return text and #text < 16 and find(text, '^%-?%d+$') and tonumber(text) end

-- A serial as it is kept: anything else could not be read in flight.
local function is_serial(text) return #text < 9 and find(text, '^[1-9]%d*$') end

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = format('%d', now)
local waiting, dead = call('HLEN', KEYS[3]), call('HLEN', KEYS[4])
local room = tonumber(ARGV[2]) - waiting + dead
local counters = call('HMGET', KEYS[5], 'accepted', 'settled', 'paused')
-- What is accepted and not settled is in flight: one count that cannot be read is told by the other.
local sequence, settled = whole(counters[1]), whole(counters[2])
sequence = sequence or (settled or 0) + waiting
settled = settled or math.max(0, sequence - waiting)
call('XLEN', KEYS[2]) -- an error here, if the key is of a wrong type, is before the first write

local accepted, accepted_ids, accepted_values = 0, {}, {} -- in order; values but for the entry
local answers, answered = {}, 0

local turn = math.floor(sequence / KEYS_REMEMBERED) % 2
local used_keys, used_before = KEYS[#KEYS - 1 + turn], KEYS[#KEYS - turn]
local used = {} -- tags of the keys of this batch → the last 8 bytes of the id that each was accepted for
local fresh_keys = {} -- what is to be remembered: tag, last 8 bytes of the id, …

-- Reads what the keys of a coupon's requests were accepted for. A hash that is none remembers nothing.
local function read_used(tags)
  for _, key in ipairs({used_before, used_keys}) do
    local found = pcall('HMGET', key, unpack(tags))
    for place = 1, #tags do
      if found[place] then used[tags[place]] = found[place] end
    end
    if found.err and key == used_keys then fresh_keys = nil end
  end
end

-- An id from a key is a UUIDv8, any other a UUIDv7.
local function is_keyed(id) return byte(id, 7) >= 128 end

local function long(letter, rest) return letter .. #rest .. ':' .. rest end

-- All that a user holds, read once a batch: ids, the oldest first; values, those in flight, false for
-- the others; latest, the place of the newest in flight. With `fresh`, some are of this very batch.
local function read_holding(held, fresh)
  local ids = {}
  for i = 1, #held, 16 do ids[#ids + 1] = sub(held, i, i + 15) end
  local values, latest = call('HMGET', KEYS[3], unpack(ids)), nil
  for place = 1, #ids do
    if fresh and not values[place] then
      for other = 1, accepted do
        if accepted_ids[other] == ids[place] then values[place] = '0-0 ' .. accepted_values[other] end
      end
    end
    if values[place] then latest = place end
  end
  return {ids = ids, values = values, latest = latest}
end

local function place_of(held, id)
  local from = find(held, id, 1, true)
  while from and from % 16 ~= 1 do from = find(held, id, from + 1, true) end
  return from and (from + 15) / 16
end

local function at_limit(holding)
  if not holding.at_limit then
    local issued, waiting = {}, {}
    for place = math.max(1, #holding.ids - TOLD_MAX + 1), #holding.ids do
      local kind = holding.values[place] and waiting or issued
      kind[#kind + 1] = holding.ids[place]
    end
    holding.at_limit = long('H', string.char(#issued) .. concat(issued) .. concat(waiting))
  end
  return holding.at_limit
end

-- The answer to a user who holds something, or has it in flight; nil if they may have one more.
local function deduplicated(holding, held, id, rejected, reused, per_user)
  local place = place_of(held, id)
  if not place and is_keyed(id) then
    if rejected then return long('J', id) end
    if reused then return 'U' end
  else
    place = place or holding.latest
  end
  if place then
    local value = holding.values[place]
    return value and long('R', holding.ids[place] .. value) or long('K', id)
  end
  if #held >= per_user * 16 then return at_limit(holding) end
end

-- Why nobody can have this coupon now; nil if they can.
local function closed(state, starts_at, ends_at)
  if state[8] == '1' then return 'X' end
  if now >= ends_at then return 'E' end
  if state[7] == '1' or counters[3] == '1' then return 'P' end
  if now < starts_at then return long('N', state[5]) end
end

-- The fields of a coupon, and whether one is as it is kept.
local FIELDS = {'id', 'total', 'next', 'per_user', 'starts_at', 'ends_at', 'paused', 'archived'}
local function is_sound(key, place, text)
  if not text then return false end
  if place == 1 then return sub(KEYS[key], -#text - 1) == ':' .. text end
  if place >= 7 then return text == '0' or text == '1' end
  if place >= 5 then return integer(text) end
  return is_serial(text) or (place == 2 and text == '0')
end

-- What is damaged of a loaded coupon; nil if nothing is.
local function damage(key, state, holders, free)
  if state.err then return 'the state of the coupon in Redis: ' .. state.err end
  if holders.err then return 'the holders of the coupon in Redis: ' .. holders.err end
  if free.err then return 'the free units of the coupon in Redis: ' .. free.err end
  for place = 1, #FIELDS do
    if not is_sound(key, place, state[place]) then return 'the field ' .. FIELDS[place] .. ' of the coupon in Redis' end
  end
end

-- Answers `count` requests alike.
local function answer_all(count, answer)
  for place = 1, count do answers[answered + place] = answer end
  answered = answered + count
  return nil
end

-- Decides the requests ARGV[first], …, ARGV[last] for one coupon, and returns what is to be written.
local function decide(key, first, last)
  local count = (last - first + 1) / 2
  local state = pcall('HMGET', KEYS[key], unpack(FIELDS))
  if not state.err and not state[1] and not state[3] then return answer_all(count, 'L') end
  local fields, keyed, tags = {}, nil, nil
  for place = 1, count do
    fields[place] = ARGV[first + place * 2 - 2]
    local id = ARGV[first + place * 2 - 1]
    if is_keyed(id) then
      keyed, tags = keyed or {}, tags or {}
      keyed[#keyed + 1] = sub(id, 1, 16)
      if #id > 16 then tags[#tags + 1] = sub(id, 17) end
    end
  end
  if tags and #tags > 0 then read_used(tags) end
  local rejected = {} -- ids from keys that were rejected
  if keyed then
    for place, id in ipairs(keyed) do fields[count + place] = '!' .. id end
  end
  local found = pcall('HMGET', KEYS[key + 1], unpack(fields))
  local free = pcall('SRANDMEMBER', KEYS[key + 2], count)
  local damaged = damage(key, state, found, free)
  if damaged then return answer_all(count, long('D', damaged)) end
  if keyed then
    for place, id in ipairs(keyed) do rejected[id] = found[count + place] end
  end

  local coupon, total, next_serial, per_user = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
  local refused = closed(state, tonumber(state[5]), tonumber(state[6]))
  local taken = {} -- users who got one in this very batch → all they hold
  local holdings = {} -- users who hold something → all of it
  local holders, holders_count, looked, freed, fresh = {}, 0, 0, 0, 0
  for place = 1, count do
    local user, id, answer, holding = fields[place], ARGV[first + place * 2 - 1], nil, nil
    local holds, tag = taken[user] or found[place], nil
    if #id > 16 then id, tag = sub(id, 1, 16), sub(id, 17) end
    local reused = tag and used[tag] and used[tag] ~= sub(id, 9)
    if holds and (#holds % 16 ~= 0 or #holds > HELD_MAX * 16) then
      answer = long('D', 'what the user holds of the coupon in Redis')
    elseif holds and holds ~= '' then
      holding = holdings[user]
      if not holding then
        holding = read_holding(holds, taken[user])
        holdings[user] = holding
      end
      answer = deduplicated(holding, holds, id, rejected[id], reused, per_user)
    elseif rejected[id] then
      answer = long('J', id)
    elseif reused then
      answer = 'U'
    end
    answer = answer or refused
    if not answer and accepted >= room then answer = 'B' end
    if not answer then
      local serial
      repeat
        looked = looked + 1
        serial = free[looked]
      until not serial or is_serial(serial)
      if serial then
        freed = freed + 1
        free[freed] = serial
      elseif next_serial + fresh <= total then
        serial = format('%d', next_serial + fresh)
        fresh = fresh + 1
      end
      if serial then
        accepted = accepted + 1
        if tag then
          used[tag] = sub(id, 9)
          if fresh_keys then fresh_keys[#fresh_keys + 1], fresh_keys[#fresh_keys + 2] = tag, used[tag] end
        end
        holds = holds and holds .. id or id
        taken[user] = holds
        accepted_ids[accepted] = id
        accepted_values[accepted] =
          format('%s %d %s %d %s %s', serial, sequence + accepted, at, #holds / 16, coupon, user)
        if holding then
          local newest = #holding.ids + 1
          holding.ids[newest], holding.values[newest] = id, '0-0 ' .. accepted_values[accepted]
          holding.latest, holding.at_limit = newest, nil
        end
        holders[holders_count + 1], holders[holders_count + 2] = user, holds
        holders_count = holders_count + 2
        answer = 'A'
      elseif #free == count and freed < count then
        -- There were members that are no serials, and there may be more that are.
        answer = long('D', 'the free units of the coupon in Redis')
      else
        answer = 'S'
      end
    end
    answers[answered + place] = answer
  end
  answered = answered + count
  return holders_count > 0
    and {key = key, holders = holders, free = free, freed = freed, fresh = fresh, next = next_serial + fresh}
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
  if fresh_keys and #fresh_keys > 0 then call('HSET', used_keys, unpack(fresh_keys)) end
  if math.floor((sequence + accepted) / KEYS_REMEMBERED) % 2 ~= turn then call('UNLINK', used_before) end
  for _, coupon in ipairs(changed) do
    call('HSET', KEYS[coupon.key + 1], unpack(coupon.holders))
    if coupon.fresh > 0 then call('HSET', KEYS[coupon.key], 'next', format('%d', coupon.next)) end
    if coupon.freed > 0 then call('SREM', KEYS[coupon.key + 2], unpack(coupon.free, 1, coupon.freed)) end
  end
end
return {'ok', now, sequence, settled, dead, concat(answers)}
