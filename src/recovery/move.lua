#!lua flags=allow-oom
-- Moves what survives of the queue into the epoch that is being built, a piece at a time: each issuance is in
-- flight in an old epoch or in this one, never in neither and never in both, so a recoverer may die between
-- two pieces, and nothing has to fit twice. From the first piece on no single epoch has all of it any more;
-- therefore the certificate forgets which one was open last, and the next recoverer takes what is in
-- flight in any. Within a queue the dead letters are moved first: the group begins after them.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead, then the hashes that it is moved from
-- ARGV  1 the epoch being built  2 group  3 consumer of the dead letters
--       then for each issuance: its id (16 bytes), its in-flight value after the entry, readable or not, and of
--       a dead letter when and why it was set aside ('' of any other)
-- Returns {'moved'} or {'superseded'} (another process recovers; nothing was done)
local held = redis.call('HMGET', KEYS[1], 'state', 'building')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] then return {'superseded'} end

redis.call('HDEL', KEYS[1], 'epoch')
local dead = {}
for at = 4, #ARGV, 3 do
  local id, rest, why = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local entry = redis.call('XADD', KEYS[2], '*', '2', id .. rest)
  redis.call('HSET', KEYS[3], id, entry .. ' ' .. rest)
  if why ~= '' then
    redis.call('HSET', KEYS[4], id, entry .. ' ' .. why)
    dead[#dead + 1] = entry
  end
  for old = 5, #KEYS do redis.call('HDEL', KEYS[old], id) end
end
if #dead > 0 then
  local created = redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], dead[#dead])
  if created.err then redis.call('XGROUP', 'SETID', KEYS[2], ARGV[2], dead[#dead]) end
  local claim = {'XCLAIM', KEYS[2], ARGV[2], ARGV[3], '0'}
  for _, entry in ipairs(dead) do claim[#claim + 1] = entry end
  claim[#claim + 1] = 'FORCE'
  claim[#claim + 1] = 'JUSTID'
  redis.call(unpack(claim))
end
return {'moved'}
