#!lua flags=allow-oom
-- Sets entries aside as dead letters: each stays the same stream entry, pending, in flight and in its
-- user's dedupe; only its owner changes, and why is written down. So does one whose in-flight value cannot
-- be read, if the stream has its entry. An entry of many is taken apart, and nothing of it is set aside: each of
-- its issuances comes to a worker again, by itself.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
-- ARGV  1 credential  2 group  3 consumer of dead letters
--       then for each entry: entry id, issuance id (16 bytes), attempts, why
-- Returns a certificate fault, or {'ok', answers}: a digit for each, 1 set aside,
--       0 it is not in flight with this entry
--@certificate
--@split
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HLEN', KEYS[4]) -- an error here, if the key is of a wrong type, is before the first write
local answers = {}
for at = 4, #ARGV, 4 do
  local entry, id = ARGV[at], ARGV[at + 1]
  local value = redis.call('HGET', KEYS[3], id)
  local named = value and string.match(value, '^(%d+%-%d+) ')
  local found = redis.call('XRANGE', KEYS[2], entry, entry)[1]
  if value and not named then named = found and issuances(found[2])() == id and entry end
  if found and found[2][1] == OF_MANY then
    split(KEYS[2], KEYS[3], ARGV[2], entry)
    answers[#answers + 1] = '0'
  elseif named == entry then
    redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'JUSTID')
    redis.call('HSET', KEYS[4], id, table.concat({entry, now, ARGV[at + 2], ARGV[at + 3]}, ' '))
    answers[#answers + 1] = '1'
  else
    answers[#answers + 1] = '0'
  end
end
return {'ok', table.concat(answers)}
