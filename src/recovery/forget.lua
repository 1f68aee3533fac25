#!lua flags=allow-oom
-- Deletes keys of other epochs. Only the epoch that is open, or being built, may: a recoverer that
-- slept must not delete what its successor built.
--
-- KEYS  1 certificate, then the keys to delete
-- ARGV  1 the epoch that is open or being built
-- Returns {'forgotten'} or {'superseded'}
local held = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'building')
local open = held[1] == 'open' and held[2] == ARGV[1]
local building = held[1] == 'closed' and held[3] == ARGV[1]
if not open and not building then return {'superseded'} end
redis.call('UNLINK', unpack(KEYS, 2))
return {'forgotten'}
