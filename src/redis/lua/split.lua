-- Takes a stream entry of many apart.
-- An entry of many is settled as a whole or taken apart: so while it is in the stream, all that it holds is in
-- flight under it. Each issuance that is gets an entry of its own, at the end of the stream, and the entry goes.
-- What of it cannot be read in flight stays so, under the new entry, which has it from the old one. Returns the ids
-- that got an entry.
--@entry
local function split(stream, in_flight, group, entry)
  local ISSUANCE = '^%d+ %d+ %d+ %d+ %S+ %S+$'
  local found, ids, texts, fresh = redis.call('XRANGE', stream, entry, entry)[1], {}, {}, {}
  local fields = found and found[2][1] == OF_MANY and found[2] or {}
  for id, text in issuances(fields) do ids[#ids + 1], texts[#texts + 1] = id, text end
  local values = #ids > 0 and redis.call('HMGET', in_flight, unpack(ids)) or {}
  for place, id in ipairs(ids) do
    local named, rest = string.match(values[place] or '', '^(%d+%-%d+) (.*)$')
    if values[place] and (not named or named == entry) then
      rest = rest or values[place]
      local text = string.match(rest, ISSUANCE) or texts[place]
      redis.call('HSET', in_flight, id, redis.call('XADD', stream, '*', OF_ONE, id .. text) .. ' ' .. rest)
      fresh[#fresh + 1] = id
    end
  end
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
  return fresh
end
