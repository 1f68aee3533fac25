#!lua
-- Takes units for a batch of requests and queues an issuance for each request that gets one.
-- The script reads and decides for the whole batch before its first write, because Redis rolls nothing back
-- when a script fails. Without the flag allow-oom Redis refuses the script when memory runs out.
-- Damage to one coupon or one user is answered to the requests for it alone: the script fails only where a key
-- of the whole queue is of a wrong type.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters
--       then for each coupon: coupon, holders, free; then the two hashes of used keys; last the spans of requests
-- ARGV  1 credential  2 the largest backlog  3 '1' if one stream entry holds all that is accepted, '0' if each has its own
--       then for each coupon: the number of its requests, then for each request: user, issuance id (16 bytes)
--       and behind it, if the id is made of a key, the tag of the key (8 bytes), and, if it is traced, its span (25)
-- Returns a certificate fault, or
--       {'ok', now in ms, sequence numbers given before, settled, dead, answers}: one string, in which each
--       answer is one of the letters below; what follows a letter comes with its length: 'K16:…'
local ACCEPTED = 'A'        -- its sequence number is the next one
local REPLAYED = 'R'        -- id value: the request's issuance is in flight, with this value, readable or not
                            -- ('0-0' stands for the entry of one that was accepted in this very batch)
local REPLAY_ISSUED = 'K'   -- id: the issuance of this key was issued
local REPLAY_REJECTED = 'J' -- id: the issuance of this key was rejected
local KEY_REUSED = 'U'      -- the key was accepted for another coupon
local AT_LIMIT = 'H'        -- n held in-flight: the user has as many as the limit allows: n (one byte) ids held,
                            -- then those in flight, of the newest TOLD_MAX
local SOLD_OUT = 'S'
local DRAINED = 'T'       -- sold out, as somebody saw who looked at all shares a while ago: look again soon
local DRY = 'Y'           -- this share has no unit left, and another share may have one
local NOT_STARTED = 'N'     -- startsAt in ms
local ENDED = 'E'
local PAUSED = 'P'          -- the coupon, or the whole service
local ARCHIVED = 'X'
local NOT_LOADED = 'L'
local BACKLOG_FULL = 'B'
local DAMAGED = 'D'         -- what: the answer cannot be determined, because this is damaged
--
-- Hot: the work for each request takes as few calls, new strings and tables as possible. So does the script as a
-- whole, because each call makes its functions anew.
-- (Numbers are written with %d: Lua's own way is the slow %.14g.)
--@certificate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local TOLD_MAX = 20  -- ids in one answer
local HELD_MAX = 200 -- ids of one user: more than any limit allows
-- Requests that are accepted between two turns of the hashes of used keys: one hash is filled with the keys of
-- this turn, the other still holds those of the turn before.
local KEYS_REMEMBERED = 250000
-- Shares are looked at again this long before nobody knows any more whether all are empty.
local RENEWED_MS = 250
-- For how long, in ms, a share that has no units says for all that they are sold out (redis/lua/units.lua).
local DRAINED_FOR = 500
-- Spans of requests that are kept at most, and for how many seconds if no worker takes them.
local SPANS_MAX = 100000
local SPANS_KEPT = 3600

local KEYS, ARGV = KEYS, ARGV
local call, pcall = redis.call, redis.pcall
local byte, find, sub, format, concat = string.byte, string.find, string.sub, string.format, table.concat

-- Read: the queue, then each coupon with what it holds of those who request it.

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = format('%d', now)
local in_flight, dead = call('HLEN', KEYS[3]), call('HLEN', KEYS[4])
local counters = call('HMGET', KEYS[5], 'accepted', 'settled', 'paused')
-- What is accepted and not settled is in flight, so one count that cannot be read follows from the other.
local sequence, settled = whole(counters[1]), whole(counters[2])
sequence = sequence or (settled or 0) + in_flight
settled = settled or math.max(0, sequence - in_flight)
local room = tonumber(ARGV[2]) - in_flight + dead
call('XLEN', KEYS[2]) -- a key of a wrong type fails here, before the first write

local turn = math.floor(sequence / KEYS_REMEMBERED) % 2
local used_keys, used_before = KEYS[#KEYS - 2 + turn], KEYS[#KEYS - 1 - turn]
local used = {}       -- tag of a key → the last 8 bytes of the id that it was accepted for
local newly_used = {} -- to be remembered: tag, last 8 bytes of the id, …; nil if nothing can be

-- Reads what these keys were accepted for. A key of Redis that is no hash remembers nothing.
local function read_used(tags)
  for _, key in ipairs({used_before, used_keys}) do
    local found = pcall('HMGET', key, unpack(tags))
    for place = 1, #tags do
      if found[place] then used[tags[place]] = found[place] end
    end
    if found.err and key == used_keys then newly_used = nil end
  end
end

-- Whether a text is a unit that readers of the in-flight value accept.
local function is_unit(text) return #text < 11 and find(text, '^[1-9]%d*$') end

local FIELDS = {'id', 'total', 'next', 'per_user', 'starts_at', 'ends_at', 'paused', 'archived',
  'shares', 'drained_until'}
local NEEDED = 8 -- fields that every coupon has; of the rest, one in one share has none
local function is_sound(key, place, text)
  if not text then return place > NEEDED end
  if place == 1 then return sub(KEYS[key], -#text - 1) == ':' .. text end
  if place == 7 or place == 8 then return text == '0' or text == '1' end
  if place == 5 or place == 6 or place == 10 then return #text < 16 and find(text, '^%-?%d+$') end
  return is_unit(text) or (place == 2 and text == '0')
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

-- An id from a key is a UUIDv8, any other a UUIDv7.
local function is_keyed(id) return byte(id, 7) >= 128 end

-- An answer with more than its letter.
local function long(letter, rest) return letter .. #rest .. ':' .. rest end

-- Reads one coupon for its requests, ARGV[first], …, ARGV[last]. With an `answer` it has that one for all of them,
-- and nothing else.
local function read_coupon(key, first, last)
  local count = (last - first + 1) / 2
  local state = pcall('HMGET', KEYS[key], unpack(FIELDS))
  if not state.err and not state[1] and not state[3] then return {count = count, answer = NOT_LOADED} end
  local users, keyed, tags = {}, nil, nil
  for place = 1, count do
    users[place] = ARGV[first + place * 2 - 2]
    local id = ARGV[first + place * 2 - 1]
    if is_keyed(id) then
      keyed, tags = keyed or {}, tags or {}
      keyed[#keyed + 1] = sub(id, 1, 16)
      if #id == 24 or #id == 49 then tags[#tags + 1] = sub(id, 17, 24) end
    end
  end
  if tags and #tags > 0 then read_used(tags) end
  if keyed then
    for number, id in ipairs(keyed) do users[count + number] = '!' .. id end
  end
  local held = pcall('HMGET', KEYS[key + 1], unpack(users))
  local free = pcall('SRANDMEMBER', KEYS[key + 2], count)
  local damaged = damage(key, state, held, free)
  if damaged then return {count = count, answer = long(DAMAGED, damaged)} end
  local rejected = {}
  if keyed then
    for number, id in ipairs(keyed) do rejected[id] = held[count + number] end
  end
  state[4] = tonumber(state[4])
  state[9] = tonumber(state[9] or 1)
  return {
    key = key,
    first = first,
    count = count,
    state = state,
    users = users,       -- by place of the request
    held = held,         -- by place of the request: ids that its user holds or has in flight, the oldest first
    rejected = rejected, -- ids from keys that were rejected
    free = free,         -- free units, as many as there are requests if there are
  }
end

-- Decide: each request in its order, coupon by coupon.

local accepted = 0
local flights = {} -- of what is accepted: id, in-flight value without the entry, …
local spans = nil  -- of what is accepted and traced: id, span, …
local answers, answered = {}, 0

-- What a user holds, read once a batch: ids, the oldest first; values, those in flight, false for the others;
-- latest, the place of the newest in flight. With `is_fresh`, the ids are of this batch.
local function read_holding(held, is_fresh)
  local ids = {}
  for i = 1, #held, 16 do ids[#ids + 1] = sub(held, i, i + 15) end
  local values, latest = call('HMGET', KEYS[3], unpack(ids)), nil
  for place = 1, #ids do
    if is_fresh and not values[place] then
      for other = 1, accepted * 2, 2 do
        if flights[other] == ids[place] then values[place] = '0-0 ' .. flights[other + 1] end
      end
    end
    if values[place] then latest = place end
  end
  return {ids = ids, values = values, latest = latest}
end

-- The answer to a user who holds something, or has it in flight; nil if the user may have one more.
local function deduplicated(holding, held, id, rejected, reused, per_user)
  local at = find(held, id, 1, true)
  while at and at % 16 ~= 1 do at = find(held, id, at + 1, true) end
  local place = at and (at + 15) / 16
  if not place and is_keyed(id) then
    if rejected then return long(REPLAY_REJECTED, id) end
    if reused then return KEY_REUSED end
  else
    place = place or holding.latest
  end
  if place then
    local value = holding.values[place]
    return value and long(REPLAYED, holding.ids[place] .. value) or long(REPLAY_ISSUED, id)
  end
  if #held < per_user * 16 then return nil end
  if not holding.at_limit then
    local issued, waiting = {}, {}
    for nth = math.max(1, #holding.ids - TOLD_MAX + 1), #holding.ids do
      local kind = holding.values[nth] and waiting or issued
      kind[#kind + 1] = holding.ids[nth]
    end
    holding.at_limit = long(AT_LIMIT, string.char(#issued) .. concat(issued) .. concat(waiting))
  end
  return holding.at_limit
end

-- Why no unit of a coupon can be had now; nil if one can.
local function closed(state)
  local starts_at, ends_at, paused, archived = unpack(state, 5, 8)
  if archived == '1' then return ARCHIVED end
  if now >= tonumber(ends_at) then return ENDED end
  if paused == '1' or counters[3] == '1' then return PAUSED end
  if now < tonumber(starts_at) then return long(NOT_STARTED, starts_at) end
end

-- The answer to a request of which something is known: its user holds something, or its key was used. Nil if the
-- user may have one more.
local function known(coupon, user, id, tag, held, is_fresh)
  local rejected, reused = coupon.rejected[id], tag and used[tag] and used[tag] ~= sub(id, 9)
  if held and (#held % 16 ~= 0 or #held > HELD_MAX * 16) then
    return long(DAMAGED, 'what the user holds of the coupon in Redis')
  elseif held and held ~= '' then
    local holdings = coupon.holdings or {} -- user → what the user holds
    coupon.holdings = holdings
    holdings[user] = holdings[user] or read_holding(held, is_fresh)
    return deduplicated(holdings[user], held, id, rejected, reused, coupon.state[4])
  elseif rejected then
    return long(REPLAY_REJECTED, id)
  elseif reused then
    return KEY_REUSED
  end
end

-- Decides the requests for one coupon.
local function decide(coupon)
  local first, count, users, found, rejected = coupon.first, coupon.count, coupon.users, coupon.held, coupon.rejected
  local coupon_id, total, next_serial = coupon.state[1], tonumber(coupon.state[2]), tonumber(coupon.state[3])
  local shares = coupon.state[9]
  local refusal = closed(coupon.state)
  local free, members, taken = coupon.free, nil, 0
  local holds, written = {}, {} -- user who got a unit → all that the user holds now; and the same in a row
  for place = 1, count do
    local user, id, tag, span, answer = users[place], ARGV[first + place * 2 - 1], nil, nil, nil
    if #id > 24 then id, span = sub(id, 1, -26), sub(id, -25) end
    if #id > 16 then id, tag = sub(id, 1, 16), sub(id, 17) end
    local held = holds[user] or found[place]
    if held or rejected[id] or tag and used[tag] then
      answer = known(coupon, user, id, tag, held, holds[user])
    end
    answer = answer or refusal
    if not answer and accepted >= room then answer = BACKLOG_FULL end
    if not answer then
      if not members then
        members = #free
        for member = members, 1, -1 do
          if not is_unit(free[member]) then table.remove(free, member) end
        end
      end
      local unit, fresh = free[taken + 1], next_serial + (taken - #free) * shares
      if not unit and fresh <= total then unit = format('%d', fresh) end
      if unit then
        taken, accepted, answer = taken + 1, accepted + 1, ACCEPTED
        held = held and held .. id or id
        local value = format('%s %d %s %d %s %s', unit, sequence + accepted, now_text, #held / 16, coupon_id, user)
        flights[accepted * 2 - 1], flights[accepted * 2] = id, value
        written[taken * 2 - 1], written[taken * 2] = user, held
        holds[user] = held
        if span then
          spans = spans or {}
          spans[#spans + 1], spans[#spans + 2] = id, span
        end
        if tag then
          used[tag] = sub(id, 9)
          if newly_used then newly_used[#newly_used + 1], newly_used[#newly_used + 2] = tag, used[tag] end
        end
        local holding = coupon.holdings and coupon.holdings[user]
        if holding then
          local newest = #holding.ids + 1
          holding.ids[newest], holding.values[newest] = id, '0-0 ' .. value
          holding.latest, holding.at_limit = newest, nil
        end
      elseif members == count and #free < count then
        -- There were members that are no units, and there may be more that are.
        answer = long(DAMAGED, 'the free units of the coupon in Redis')
        refusal = answer
      else
        local known_for = tonumber(coupon.state[10] or 0) - now
        if shares == 1 then
          answer = SOLD_OUT
        elseif known_for <= 0 or known_for > DRAINED_FOR then
          answer = DRY
        else
          answer = known_for > RENEWED_MS and SOLD_OUT or DRAINED
        end
        refusal = answer
      end
    end
    answers[answered + place] = answer
  end
  if taken > 0 then coupon.written, coupon.taken = written, taken end
end

local coupons = {}
local arg, key = 4, 6
while arg <= #ARGV do
  local last = arg + ARGV[arg] * 2
  coupons[#coupons + 1] = read_coupon(key, arg + 1, last)
  arg, key = last + 1, key + 3
end
for _, coupon in ipairs(coupons) do
  if coupon.answer then
    for place = 1, coupon.count do answers[answered + place] = coupon.answer end
  else
    decide(coupon)
  end
  answered = answered + coupon.count
end

-- Write: what was accepted.

if accepted > 0 then
  local of_all = ARGV[3] == '1' and accepted > 1 and call('XADD', KEYS[2], '*', '3', '', unpack(flights))
  for place = 1, accepted * 2, 2 do
    local value = flights[place + 1]
    local entry = of_all or call('XADD', KEYS[2], '*', '2', flights[place] .. value)
    flights[place + 1] = entry .. ' ' .. value
  end
  call('HSET', KEYS[3], unpack(flights))
  call('HSET', KEYS[5], 'accepted', format('%d', sequence + accepted))
  if newly_used and #newly_used > 0 then call('HSET', used_keys, unpack(newly_used)) end
  if math.floor((sequence + accepted) / KEYS_REMEMBERED) % 2 ~= turn then call('UNLINK', used_before) end
  for _, coupon in ipairs(coupons) do
    local key, taken = coupon.key, coupon.taken
    if taken then
      local freed = math.min(taken, #coupon.free)
      call('HSET', KEYS[key + 1], unpack(coupon.written))
      if taken > freed then call('HSET', KEYS[key], 'next', format('%d', coupon.state[3] + (taken - freed) * coupon.state[9])) end
      if freed > 0 then call('SREM', KEYS[key + 2], unpack(coupon.free, 1, freed)) end
    end
  end
  if spans then
    -- A key of a wrong type keeps none, and harms nothing.
    local kept = pcall('HLEN', KEYS[#KEYS])
    if type(kept) == 'number' and kept < SPANS_MAX then
      call('HSET', KEYS[#KEYS], unpack(spans))
      call('EXPIRE', KEYS[#KEYS], SPANS_KEPT)
    end
  end
end
return {'ok', now, sequence, settled, dead, concat(answers)}
