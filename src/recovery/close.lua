#!lua flags=allow-oom
-- Closes the certificate: from here on every other script refuses, until the data is certified again
-- (certify.lua) or that of a new epoch is opened (open.lua). A recoverer of an earlier term is turned
-- away, so that one that slept cannot undo the work of its successor.
--
-- KEYS  1 certificate
-- ARGV  1 term of the recovery lease  2 the new epoch
-- Returns {'closed', the epoch that was open last or ''} or {'superseded'}
local held = redis.call('HMGET', KEYS[1], 'term', 'epoch')
local term = tonumber(held[1] or 0)
if term > tonumber(ARGV[1]) then return {'superseded'} end
local info = redis.call('INFO', 'server')
local run_id = string.match(info, 'run_id:(%x+)')
redis.call('HSET', KEYS[1], 'state', 'closed', 'term', ARGV[1], 'building', ARGV[2], 'building_on', run_id)
return {'closed', held[2] or ''}
