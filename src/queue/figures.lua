#!lua flags=no-writes
-- How much is queued, all read at one moment. Cheap: it looks at no more of the stream than its first
-- entries, and at more than one only to pass over dead letters.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
-- ARGV  1 epoch  2 how many dead letters to pass over at most
-- Returns {'uncertified'} or {'stale', epoch}, or
--       {'ok', now in ms, in flight, dead letters, stream entries,
--        when the oldest that is no dead letter was accepted, in ms; '' if there is none}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local dead = redis.call('HLEN', KEYS[4])
local oldest = ''
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', math.min(dead, tonumber(ARGV[2])) + 1)
for _, entry in ipairs(first) do
  local id, at = string.sub(entry[2][2], 1, 16), string.match(string.sub(entry[2][2], 17), '^%d+ %d+ (%d+) ')
  if redis.call('HEXISTS', KEYS[4], id) == 0 then
    -- An entry that was appended anew keeps its request's time.
    oldest = at or string.match(entry[1], '^%d+')
    break
  end
end
return {'ok', time[1] * 1000 + math.floor(time[2] / 1000),
  redis.call('HLEN', KEYS[3]), dead, redis.call('XLEN', KEYS[2]), oldest}
