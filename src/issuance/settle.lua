#!lua flags=allow-oom
-- Tells Redis what the ledger decided. Works when memory has run out: it only gives back.
-- The guard is the in-flight hash: it must name this very stream entry, else nothing is done for it.
-- (XACK's 0 would not do: it can also mean that the group is missing.)
-- What is damaged concerns nobody else of the batch. For an in-flight value that cannot be read nothing is
-- done. To the accounts of a coupon that are damaged nothing is written, as to those of one that is not
-- loaded.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 counters
--       then for each coupon: coupon, holders, free
-- ARGV  1 epoch  2 group  3 channel
--       then for each outcome: number of its coupon (1 is the first), entry id, issuance id (16 bytes),
--       the verdict, the announcement
--       A verdict is 'I' and the serial; or 'R', '1' if the serial is given back or '0' if it is lost to
--       another record, '1' if the id was made from a key or '0', the serial in ten digits (zeros for
--       none), and what a user rejected as already issued holds (26 bytes each: id, serial in ten digits)
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', answers}: a digit for each, 1 settled, 0 guarded off, 2 its
--       in-flight value cannot be read, and nothing was done
-- Publishes the announcements of what was settled as one message, a line each.
--@certificate
--@outdate
--@take_unit
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local UNREADABLE = {}

-- Of each coupon that is loaded, by its key's place: the next serial, and how many are settled.
local next_serial, counted = {}, {}

-- Takes a unit out of the free ones, but not over any gap, for a script must stay short: a unit that is further
-- above the next one than GAP_MAX stays free until the audit takes it out. Whether it was taken.
local GAP_MAX = 1000
local function take(key, serial)
  serial = tonumber(serial)
  local first = next_serial[key]
  if serial - first > GAP_MAX then return false end
  take_unit(KEYS[key], KEYS[key + 2], first, serial, GAP_MAX)
  next_serial[key] = math.max(first, serial + 1)
  return true
end

-- Read everything first: an error here is before the first write.
local count = (#ARGV - 3) / 5
for key = 6, #KEYS, 3 do
  local state = redis.pcall('HMGET', KEYS[key], 'id', 'next', 'settled')
  local holders, free = redis.pcall('HLEN', KEYS[key + 1]), redis.pcall('SCARD', KEYS[key + 2])
  if state[1] and type(holders) == 'number' and type(free) == 'number' and whole(state[2]) and whole(state[3]) then
    next_serial[key], counted[key] = tonumber(state[2]), tonumber(state[3])
  end
end
local ids = {}
for item = 1, count do ids[item] = ARGV[item * 5 + 1] end
local values = redis.call('HMGET', KEYS[3], unpack(ids))
local dead = redis.call('HLEN', KEYS[4])
local counters = redis.call('HMGET', KEYS[5], 'settled', 'accepted')
-- What is accepted and not settled is in flight.
local settled = whole(counters[1]) or math.max(0, (whole(counters[2]) or 0) - redis.call('HLEN', KEYS[3]))
redis.call('XLEN', KEYS[2])

local entries, settled_ids, issued, seen, answers, announced = {}, {}, {}, {}, {}, {}
local unloaded = 0
for item = 1, count do
  local at = item * 5 - 2
  local key = 6 + (tonumber(ARGV[at + 1]) - 1) * 3
  local entry, id, verdict = ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local held_entry, held_serial, user
  if values[item] and not seen[id] then
    held_entry, held_serial, user = string.match(values[item], '^(%d+%-%d+) (%d+) %d+ %d+ %d+ %S+ (%S+)$')
    if not user or #held_serial > 8 then
      -- One that names another entry is guarded off, readable or not.
      local named = string.match(values[item], '^(%d+%-%d+) ')
      held_entry = (named == entry or not named) and UNREADABLE
    end
  end
  if held_entry ~= entry then
    answers[item] = held_entry == UNREADABLE and '2' or '0'
  else
    seen[id] = true
    answers[item] = '1'
    entries[#entries + 1] = entry
    settled_ids[#settled_ids + 1] = id
    announced[#announced + 1] = ARGV[at + 5]
    if not counted[key] then
      -- A load that has read this one in flight must begin anew (load.lua).
      unloaded = unloaded + 1
    else
      if string.byte(verdict) == 73 then -- I
        local serial = string.sub(verdict, 2)
        issued[key] = (issued[key] or 0) + 1
        -- The unit that the ledger names is taken, whatever was in flight for it.
        if serial ~= held_serial then
          take(key, serial)
          if held_serial ~= '0' then redis.call('SADD', KEYS[key + 2], held_serial) end
        end
      else
        -- What is in flight goes back, unless the tombstone says that this very serial is lost.
        -- (It may be a fresh one: reserved again under the id of an older rejection.)
        local given_back, keyed = string.sub(verdict, 2, 2) == '1', string.sub(verdict, 3, 3) == '1'
        local lost = not given_back and tonumber(string.sub(verdict, 4, 13)) == tonumber(held_serial)
        if held_serial ~= '0' and not lost then redis.call('SADD', KEYS[key + 2], held_serial) end
        local held, rest, known = redis.call('HGET', KEYS[key + 1], user) or '', {}, {[id] = true}
        for i = 1, #held, 16 do
          local other = string.sub(held, i, i + 15)
          if not known[other] then rest[#rest + 1] = other end
          known[other] = true
        end
        -- What the ledger says the user holds comes into dedupe, else each further request would be
        -- accepted and rejected again; and into the accounts with it, for whoever is in dedupe and not
        -- in flight is counted. One in flight counts when it is settled.
        for i = 14, #verdict, 26 do
          local other = string.sub(verdict, i, i + 15)
          if not known[other] then
            local waits = redis.call('HEXISTS', KEYS[3], other) == 1
            if waits or take(key, string.sub(verdict, i + 16, i + 25)) then
              rest[#rest + 1] = other
              if not waits then issued[key] = (issued[key] or 0) + 1 end
            end
          end
          known[other] = true
        end
        if #rest > 0 then
          redis.call('HSET', KEYS[key + 1], user, table.concat(rest))
        else
          redis.call('HDEL', KEYS[key + 1], user)
        end
        if keyed then redis.call('HSET', KEYS[key + 1], '!' .. id, '1') end
      end
    end
  end
end

if #entries > 0 then
  for key, number in pairs(issued) do
    redis.call('HSET', KEYS[key], 'settled', string.format('%.0f', counted[key] + number))
  end
  redis.call('XACK', KEYS[2], ARGV[2], unpack(entries))
  redis.call('XDEL', KEYS[2], unpack(entries))
  redis.call('HDEL', KEYS[3], unpack(settled_ids))
  if dead > 0 then redis.call('HDEL', KEYS[4], unpack(settled_ids)) end
  redis.call('HSET', KEYS[5], 'settled', string.format('%.0f', settled + #entries))
  if unloaded > 0 then outdate(KEYS[5], 'settled_unloaded', unloaded) end
  redis.call('PUBLISH', ARGV[3], table.concat(announced, '\n'))
end
return {'ok', table.concat(answers)}
