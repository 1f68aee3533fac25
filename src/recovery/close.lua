#!lua flags=allow-oom
-- Closes the certificate: from here on every other script refuses, until the data is certified again
-- (certify.lua) or that of a new epoch is opened (open.lua). A recoverer of an earlier term is turned
-- away, so that one that slept cannot undo the work of its successor; and so is one of another ledger, unless
-- it is to take the data over. From then on it is that ledger's, and processes of the other one keep out.
-- Data that was last closed or opened before the latest opening there is, wherever that was, is out of date,
-- and can never be certified as it is: the certificate forgets its epoch, and says so until it is opened, so
-- that another recoverer, after this one, knows it too, whatever the term is by then.
--
-- KEYS  1 certificate
-- ARGV  1 term of the recovery lease  2 the new epoch  3 the recoverer's ledger  4 '1' if it takes the data over
--       5 term of the latest opening (0: none is known)
-- Returns {'closed', the epoch that was open last or '', the run_id of this instance, '1' if it was a replica
--   since it started, else '0', '1' if the data is out of date, else '0'} or {'superseded'}
--@certificate_fields
local held = certificate_fields(KEYS[1])
local term = tonumber(held.term)
if term > tonumber(ARGV[1]) then return {'superseded'} end
if held.ledger and held.ledger ~= ARGV[3] and ARGV[4] ~= '1' then return {'superseded'} end
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local info = redis.call('INFO', 'server', 'replication')
local run_id = string.match(info, 'run_id:(%x+)')
redis.call('HSET', KEYS[1], 'state', 'closed', 'term', ARGV[1], 'building', ARGV[2], 'building_on', run_id, 'ledger', ARGV[3])
local out_of_date = term < tonumber(ARGV[5]) or (held.state == 'closed' and held.behind)
if out_of_date then
  redis.call('HDEL', KEYS[1], 'epoch')
  redis.call('HSET', KEYS[1], 'behind', ARGV[5])
  held.epoch = nil
else
  redis.call('HDEL', KEYS[1], 'behind')
end
local was_replica = not string.find(info, 'master_replid2:0+\r')
return {'closed', held.epoch or '', run_id, was_replica and '1' or '0', out_of_date and '1' or '0'}
