#!lua flags=allow-oom
-- Tells Redis what the ledger decided. It works when memory has run out, because it only gives back.
-- The guard is the in-flight hash: an outcome is settled only if the hash names its very stream entry.
-- (XACK's 0 would not do: it can also mean that the group is missing.)
-- Damage to one issuance or coupon concerns no other of the batch. Nothing is done for an in-flight value that
-- cannot be read, and nothing is written to the accounts of a coupon that is damaged or not loaded.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters
--       then for each coupon: coupon, holders, free
-- ARGV  1 credential  2 group  3 the command that announces, and the channel, with a space between
--       then for each outcome: number of its coupon (1 is the first), entry id, issuance id (16 bytes),
--       the verdict, the announcement, how many issuances that entry holds (0 if unknown)
-- A verdict is one of these letters, with the rest behind it:
local ISSUED = 'I'   -- the unit
local MOVED = 'M'    -- the unit; it was reserved for another share, and is not announced
local REJECTED = 'R' -- '1' if the unit is given back or '0' if it is lost to another record, '1' if the id was
                     -- made from a key or '0', the unit in ten digits (zeros for none), and what a user who was
                     -- rejected as already issued holds (26 bytes each: id, unit in ten digits)
-- Returns a certificate fault, or {'ok', answers}: one of these for each outcome
local SETTLED = '1'
local GUARDED_OFF = '0'
local UNREADABLE = '2' -- its in-flight value cannot be read, and nothing was done
-- Publishes the announcements of what was settled as one message, a line each. A stream entry of many goes with its
-- issuances: if not all of them are settled here, the others get entries of their own.
--@certificate
--@outdate
--@split
--@units
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

-- A script must stay short: a unit that is further above the next one than this stays free until the audit takes
-- it out.
local GAP_MAX = 1000

local KEYS, ARGV = KEYS, ARGV
local call, pcall, sub, match = redis.call, redis.pcall, string.sub, string.match

-- Read: whatever can fail does so before the first write.

local next_serial, shares = {}, {} -- place of a loaded coupon's key → its next serial, and how many shares it has
local counted, moved = {}, {}      -- → how many of its units are settled as issued, and as moved away
for key = 6, #KEYS, 3 do
  local state = pcall('HMGET', KEYS[key], 'id', 'next', 'settled', 'shares', 'moved')
  local holders, free = pcall('HLEN', KEYS[key + 1]), pcall('SCARD', KEYS[key + 2])
  if state[1] and type(holders) == 'number' and type(free) == 'number' and whole(state[2]) and whole(state[3])
    and whole(state[4] or '1') and whole(state[5] or '0') then
    next_serial[key], counted[key] = tonumber(state[2]), tonumber(state[3])
    shares[key], moved[key] = tonumber(state[4] or '1'), tonumber(state[5] or '0')
  end
end
local count, ids = (#ARGV - 3) / 6, {}
for item = 1, count do ids[item] = ARGV[item * 6] end
local values = call('HMGET', KEYS[3], unpack(ids))
local dead = call('HLEN', KEYS[4])
local counters = call('HMGET', KEYS[5], 'settled', 'accepted')
-- What is accepted and not settled is in flight.
local settled_before = whole(counters[1]) or math.max(0, (whole(counters[2]) or 0) - call('HLEN', KEYS[3]))
call('XLEN', KEYS[2])

-- Decide: the guard, for each outcome.

local answers, settled = {}, {}
local units, users = {}, {} -- in flight, of each outcome that is settled
for item = 1, count do
  local id, value = ids[item], values[item]
  answers[item] = GUARDED_OFF
  if value and not settled[id] then
    local entry = ARGV[item * 6 - 1]
    local held_entry, unit, user = match(value, '^(%d+%-%d+) (%d+) %d+ %d+ %d+ %S+ (%S+)$')
    if not user or #unit > 10 then
      -- A value that names another entry is guarded off, readable or not.
      local named = match(value, '^(%d+%-%d+) ')
      if not named or named == entry then answers[item] = UNREADABLE end
    elseif held_entry == entry then
      answers[item], units[item], users[item], settled[id] = SETTLED, unit, user, true
    end
  end
end

-- Write: the accounts of the coupons, then the queue.

local issued, moved_away = {}, {} -- place of a coupon's key → how many more are settled so

-- Takes a unit out of the free ones, but not over a gap of more than GAP_MAX. Returns whether it was taken.
local function take(key, unit)
  unit = tonumber(unit)
  if unit < SERIALS and (unit - next_serial[key]) / shares[key] > GAP_MAX then return false end
  next_serial[key] = take_unit(KEYS[key], KEYS[key + 2], shares[key], next_serial[key], unit, GAP_MAX)
  return true
end

-- Takes an issuance that was not issued out of its user's dedupe. What the ledger says the user holds comes into dedupe, else
-- each further request would be accepted and rejected again; and into the accounts with it, because an id that is
-- in dedupe and not in flight is counted. One in flight counts when it is settled.
local function release(key, id, user, verdict)
  local held, rest, known = call('HGET', KEYS[key + 1], user) or '', {}, {[id] = true}
  for i = 1, #held, 16 do
    local other = sub(held, i, i + 15)
    if not known[other] then rest[#rest + 1] = other end
    known[other] = true
  end
  for i = 14, #verdict, 26 do
    local other = sub(verdict, i, i + 15)
    if not known[other] then
      local waits = call('HEXISTS', KEYS[3], other) == 1
      if waits or take(key, sub(verdict, i + 16, i + 25)) then
        rest[#rest + 1] = other
        if not waits then issued[key] = (issued[key] or 0) + 1 end
      end
    end
    known[other] = true
  end
  if #rest > 0 then
    call('HSET', KEYS[key + 1], user, table.concat(rest))
  else
    call('HDEL', KEYS[key + 1], user)
  end
  if sub(verdict, 3, 3) == '1' then call('HSET', KEYS[key + 1], '!' .. id, '1') end
end

local settled_ids, announced, unloaded = {}, {}, 0
local left = {} -- stream entry → how many of its issuances are left
for item = 1, count do
  local held = units[item]
  if held then
    local at = item * 6 - 2
    local key, entry, verdict = 3 + ARGV[at] * 3, ARGV[at + 1], ARGV[at + 3]
    local place = #settled_ids + 1
    settled_ids[place] = ids[item]
    if ARGV[at + 4] ~= '' then announced[#announced + 1] = ARGV[at + 4] end
    left[entry] = (left[entry] or ARGV[at + 5]) - 1
    if not counted[key] then
      unloaded = unloaded + 1
    elseif sub(verdict, 1, 1) ~= REJECTED then
      -- The unit that the ledger names is taken, whatever was in flight for it.
      local unit = sub(verdict, 2)
      if unit ~= held then
        take(key, unit)
        if held ~= '0' then give_back(KEYS[key], KEYS[key + 2], held) end
      end
      if sub(verdict, 1, 1) == MOVED then
        moved_away[key] = (moved_away[key] or 0) + 1
        release(key, ids[item], users[item], '')
        call('HSET', KEYS[key + 1], '-' .. ids[item], '1')
      else
        issued[key] = (issued[key] or 0) + 1
      end
    else
      -- The unit in flight goes back, unless the tombstone says that this very one is lost. (It may be a fresh
      -- one: reserved again under the id of an older rejection.)
      local lost = sub(verdict, 2, 2) ~= '1' and tonumber(sub(verdict, 4, 13)) == tonumber(held)
      if held ~= '0' and not lost then give_back(KEYS[key], KEYS[key + 2], held) end
      release(key, ids[item], users[item], verdict)
    end
  end
end
if #settled_ids > 0 then
  for key, number in pairs(issued) do
    call('HSET', KEYS[key], 'settled', string.format('%.0f', counted[key] + number))
  end
  for key, number in pairs(moved_away) do
    call('HSET', KEYS[key], 'moved', string.format('%.0f', moved[key] + number))
  end
  call('HDEL', KEYS[3], unpack(settled_ids))
  local entries = {}
  for entry, number in pairs(left) do
    if number == 0 then
      entries[#entries + 1] = entry
    else
      split(KEYS[2], KEYS[3], ARGV[2], entry)
    end
  end
  if #entries > 0 then
    call('XACK', KEYS[2], ARGV[2], unpack(entries))
    call('XDEL', KEYS[2], unpack(entries))
  end
  if dead > 0 then call('HDEL', KEYS[4], unpack(settled_ids)) end
  call('HSET', KEYS[5], 'settled', string.format('%.0f', settled_before + #settled_ids))
  -- A load that has read one of these in flight must begin anew (load.lua).
  if unloaded > 0 then outdate(KEYS[5], 'settled_unloaded', unloaded) end
  local announce, channel = match(ARGV[3], '^(%u+) (.*)$')
  if #announced > 0 then call(announce, channel, table.concat(announced, '\n')) end
end
return {'ok', table.concat(answers)}
