#!lua flags=no-writes
-- How much is queued, all read at one moment. Cheap, whatever stands at the head of the stream: dead
-- letters belong to a consumer of their own, so the oldest that waits is the first one pending for
-- another consumer, or else the first one that was never delivered. What is not in flight, or cannot be
-- read, waits for nothing, and is passed over.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
-- ARGV  1 credential  2 group  3 consumer of dead letters  4 how many pages to pass over, for each consumer
--       5 how many consumers to search
-- Returns a certificate fault, or
--       {'ok', now in ms, in flight, dead letters, stream entries,
--        when the oldest that waits was accepted, in ms; '' if none does}
--@certificate
--@entry
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local PAGE = 20 -- entries
local oldest    -- as a number of ms

-- Whether an issuance waits; if so, when it was accepted counts.
local function waits(id, text)
  local at = string.match(text, '^%d+ %d+ (%d+) %d+ %S+ %S+$')
  -- An entry that was appended anew keeps its request's time.
  if not at or #at > 15 or redis.call('HEXISTS', KEYS[3], id) == 0 or redis.call('HEXISTS', KEYS[4], id) == 1 then
    return false
  end
  oldest = math.min(oldest or math.huge, tonumber(at))
  return true
end

-- Searches for the first entry that waits, a page at a time: `page` returns the ids of so many entries that follow one.
-- Where too many wait for nothing, it is at least as old as the last of these.
local function search(after, page)
  for number = 1, tonumber(ARGV[4]) do
    -- Nearly always the first one waits, and an entry may be long.
    local size = number == 1 and 1 or PAGE
    local ids = page(after, size)
    for _, id in ipairs(ids) do
      local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
      -- All in an entry of many were accepted in one moment.
      for issuance, text in issuances(entry and entry[2] or {}) do
        if waits(issuance, text) then return end
      end
    end
    if #ids < size then return end
    after = '(' .. ids[#ids]
  end
  oldest = math.min(oldest or math.huge, tonumber(string.match(after, '%d+')))
end

-- The first of each of these lists.
local function firsts(lists)
  for place = 1, #lists do lists[place] = lists[place][1] end
  return lists
end

local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
local delivered = '-'
for _, info in ipairs(groups) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  if group.name == ARGV[2] then
    delivered = '(' .. group['last-delivered-id']
    local searched = 0
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], ARGV[2])) do
      local of = {}
      for i = 1, #consumer, 2 do of[consumer[i]] = consumer[i + 1] end
      if of.name ~= ARGV[3] and of.pending > 0 and searched < tonumber(ARGV[5]) then
        searched = searched + 1
        search('-', function(after, size)
          return firsts(redis.call('XPENDING', KEYS[2], ARGV[2], after, '+', size, of.name))
        end)
      end
    end
  end
end
search(delivered, function(after, size) return firsts(redis.call('XRANGE', KEYS[2], after, '+', 'COUNT', size)) end)

local time = redis.call('TIME')
local in_flight, dead = redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[4])
local told = oldest and in_flight > dead
return {'ok', time[1] * 1000 + math.floor(time[2] / 1000), in_flight, dead, redis.call('XLEN', KEYS[2]),
  told and string.format('%.0f', oldest) or ''}
