#!lua flags=allow-oom
-- Searches a part of the in-flight hash for issuances that no worker will ever get: their stream entry is gone
-- (the stream was trimmed), or it was delivered to a consumer that was deleted. Each gets a fresh entry. This never
-- happens by itself: it is an alarm.
--
-- KEYS  1 certificate  2 stream  3 in-flight
-- ARGV  1 credential  2 group  3 cursor of the scan ('0' at first)
--       4 about how many issuances to read, in flight and in the stream: an entry may hold hundreds
-- Returns a certificate fault, or {'ok', next cursor ('0' at the end), id, …}:
--       the issuances that got a fresh entry
--@certificate
--@split
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local function time_of(entry)
  local ms, seq = string.match(entry, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local delivered_ms, delivered_seq = 0, 0
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  if group.name == ARGV[2] then delivered_ms, delivered_seq = time_of(group['last-delivered-id']) end
end

local PAGE = 20 -- values of one scan, or places where some were
local is_known = {} -- entries of many that are there, or were taken apart here
local read, reply = 0, {'ok', ''}

-- Restores an issuance if its entry is lost.
local function restore(id, value)
  -- The audit reports a value that cannot be read, or names no entry that can exist.
  local entry, rest = string.match(value, '^(%d+%-%d+) (%d+ %d+ %d+ %d+ %S+ %S+)$')
  local found = #id == 16 and entry and not is_known[entry] and redis.pcall('XRANGE', KEYS[2], entry, entry)
  if found and not found.err then
    local lost, many = #found == 0, #found > 0 and found[1][2][1] == OF_MANY
    read = read + (many and #found[1][2] / 2 or 1)
    if not lost then
      local ms, seq = time_of(entry)
      local delivered = ms < delivered_ms or (ms == delivered_ms and seq <= delivered_seq)
      lost = delivered and #redis.call('XPENDING', KEYS[2], ARGV[2], entry, entry, 1) == 0
    end
    is_known[entry] = many
    if lost and many then
      for _, other in ipairs(split(KEYS[2], KEYS[3], ARGV[2], entry)) do reply[#reply + 1] = other end
    elseif lost then
      redis.call('XDEL', KEYS[2], entry)
      local fresh = redis.call('XADD', KEYS[2], '*', OF_ONE, id .. rest)
      redis.call('HSET', KEYS[3], id, fresh .. ' ' .. rest)
      reply[#reply + 1] = id
    end
  end
end

local cursor = ARGV[3]
repeat
  local scan = redis.call('HSCAN', KEYS[3], cursor, 'COUNT', PAGE)
  cursor, read = scan[1], read + PAGE
  for at = 1, #scan[2], 2 do restore(scan[2][at], scan[2][at + 1]) end
until cursor == '0' or read >= tonumber(ARGV[4])
reply[2] = cursor
return reply
