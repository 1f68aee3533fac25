#!lua flags=allow-oom
-- Redrives a dead letter: its owner becomes a consumer without a heartbeat, so the next live worker claims it.
-- If its stream entry or its in-flight value is gone, or cannot be read, it is made anew from the other; the next
-- reader gets a fresh entry. The dead letter is remembered for a while, for a client that lost the answer.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 what is remembered of it
-- ARGV  1 credential  2 group  3 consumer to give it to  4 issuance id (16 bytes)  5 for how many seconds
-- Returns a certificate fault, or {'ok', '1' on its way | '0' it is no dead letter |
--       '2' neither its in-flight value nor its stream entry can be read}
--@certificate
--@entry
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local RESERVED = '(%d+ %d+ %d+ %d+ %S+ %S+)$' -- what follows the entry, or in the stream the id

local id = ARGV[4]
local value, dead = redis.call('HGET', KEYS[3], id), redis.call('HGET', KEYS[4], id)
if not dead then return {'ok', '0'} end
local entry, rest = string.match(value or '', '^(%d+%-%d+) ' .. RESERVED)
-- Where the in-flight value cannot be read, the dead letter knows the entry.
entry = entry or string.match(dead, '^(%d+%-%d+) ') or string.match(value or '', '^(%d+%-%d+) ')
local found = entry and redis.call('XRANGE', KEYS[2], entry, entry)[1]
local of, kept
if found and found[2][1] == OF_ONE then of, kept = issuances(found[2])() end
if of == id and string.match(kept, '^' .. RESERVED) then
  redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'JUSTID')
  -- As the entry has it: the worker that is given it knows whether its unit is another's by now.
  if not rest then redis.call('HSET', KEYS[3], id, entry .. ' ' .. kept) end
elseif rest then
  redis.call('XACK', KEYS[2], ARGV[2], entry)
  redis.call('XDEL', KEYS[2], entry)
  redis.call('HSET', KEYS[3], id, redis.call('XADD', KEYS[2], '*', OF_ONE, id .. rest) .. ' ' .. rest)
else
  return {'ok', '2'}
end
redis.call('HDEL', KEYS[4], id)
redis.call('DEL', KEYS[5])
redis.call('HSET', KEYS[5], 'dead', dead, 'in_flight', redis.call('HGET', KEYS[3], id))
redis.call('EXPIRE', KEYS[5], ARGV[5])
return {'ok', '1'}
