#!lua flags=allow-oom
-- Keeps what a rebuild would lose: fields of a hash; a key that is of another type than it should be, under a
-- name of its own.
--
-- KEYS  1 certificate  2 the hash
--       3 the name for what lies under KEYS[2] if that is no hash; then pairs: a key of a wrong type, its new name
-- ARGV  1 the epoch being built, then fields and values of the hash
-- Returns {'kept'} or {'superseded'} (another process recovers; nothing was done)
local held = redis.call('HMGET', KEYS[1], 'state', 'building')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] then return {'superseded'} end

for key = 4, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[key]) == 1 then redis.call('RENAME', KEYS[key], KEYS[key + 1]) end
end
local kind = redis.call('TYPE', KEYS[2]).ok
if #ARGV > 1 and kind ~= 'hash' and kind ~= 'none' then redis.call('RENAME', KEYS[2], KEYS[3]) end
for at = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
return {'kept'}
