#!lua flags=allow-oom
-- Closes the certificate: from here on every other script refuses, until the data is certified again
-- (certify.lua) or that of a new epoch is opened (open.lua). A recoverer of an earlier term is turned
-- away, so that one that slept cannot undo the work of its successor; and so is one of another ledger, unless
-- it is to take the data over. From then on it is that ledger's, and processes of the other one keep out.
--
-- KEYS  1 certificate
-- ARGV  1 term of the recovery lease  2 the new epoch  3 the recoverer's ledger  4 '1' if it takes the data over
-- Returns {'closed', the epoch that was open last or ''} or {'superseded'}
local held = redis.call('HMGET', KEYS[1], 'term', 'epoch', 'ledger')
local term = tonumber(held[1] or 0)
if term > tonumber(ARGV[1]) then return {'superseded'} end
if held[3] and held[3] ~= ARGV[3] and ARGV[4] ~= '1' then return {'superseded'} end
local info = redis.call('INFO', 'server')
local run_id = string.match(info, 'run_id:(%x+)')
redis.call('HSET', KEYS[1], 'state', 'closed', 'term', ARGV[1], 'building', ARGV[2], 'building_on', run_id, 'ledger', ARGV[3])
return {'closed', held[2] or ''}
