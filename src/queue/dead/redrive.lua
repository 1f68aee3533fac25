#!lua flags=allow-oom
-- Redrives dead letters: the owner of each becomes a consumer without a heartbeat, so the next live worker claims it.
-- If its stream entry or its in-flight value is gone, or cannot be read, it is made anew from the other; the next
-- reader gets a fresh entry. A dead letter is remembered for a while, for a client that lost the answer, if the caller
-- names the key to remember it under.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead
--       then, for each dead letter or for none: what is remembered of it
-- ARGV  1 credential  2 group  3 consumer to give them to  4 for how many seconds they are remembered
--       then the issuance ids (16 bytes each)
-- Returns a certificate fault, or {'ok', answers}: one of these for each id
local REDRIVEN = '1'
local NONE = '0'       -- it is no dead letter
local UNREADABLE = '2' -- neither its in-flight value nor its stream entry can be read, and nothing was done
--@certificate
--@entry
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local RESERVED = '(%d+ %d+ %d+ %d+ %S+ %S+)$' -- what follows the entry, or in the stream the id

local function redrive(id, remembered)
  local value, dead = redis.call('HGET', KEYS[3], id), redis.call('HGET', KEYS[4], id)
  if not dead then return NONE end
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
    return UNREADABLE
  end
  redis.call('HDEL', KEYS[4], id)
  if remembered then
    redis.call('DEL', remembered)
    redis.call('HSET', remembered, 'dead', dead, 'in_flight', redis.call('HGET', KEYS[3], id))
    redis.call('EXPIRE', remembered, ARGV[4])
  end
  return REDRIVEN
end

local answers = {}
for at = 5, #ARGV do answers[#answers + 1] = redrive(ARGV[at], KEYS[at]) end
return {'ok', table.concat(answers)}
