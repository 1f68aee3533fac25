#!lua flags=allow-oom
-- Opens the epoch that was open last again, because its data was found intact: compare-and-set on the
-- term and the recoverer's epoch, on the very instance that was checked. The state of the service is
-- brought up to its record in the same moment, so that a pause that Redis missed holds from the first request.
--
-- KEYS  1 certificate  2 stream  3 counters  4 rounds of the full audit
-- ARGV  1 term  2 the recoverer's own epoch  3 the epoch that is intact  4 group
--       5 generation of the service's state  6 '1' if the service is paused
-- Returns {'opened'}, {'superseded'} (another process recovers), {'restarted'} (this is not the
--   instance that was closed), or {'incomplete', what is missing}
local held = redis.call('HMGET', KEYS[1], 'state', 'term', 'building', 'building_on', 'epoch')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] or held[3] ~= ARGV[2] then return {'superseded'} end
local info = redis.call('INFO', 'server', 'replication')
local run_id = string.match(info, 'run_id:(%x+)')
if held[4] ~= run_id then return {'restarted'} end
if held[5] ~= ARGV[3] then return {'incomplete', 'the certificate of that epoch'} end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err or not groups[1] or groups[1][2] ~= ARGV[4] then return {'incomplete', 'consumer group'} end
if redis.call('TYPE', KEYS[3]).ok ~= 'hash' then return {'incomplete', 'counters'} end
local generation = redis.call('HGET', KEYS[3], 'service_generation')
generation = generation and #generation < 16 and string.match(generation, '^%d+$') or '-1'
if tonumber(ARGV[5]) > tonumber(generation) then
  redis.call('HSET', KEYS[3], 'service_generation', ARGV[5], 'paused', ARGV[6])
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', 'open', 'run_id', run_id,
  'replid', string.match(info, 'master_replid:(%x+)'), 'opened_at', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
redis.call('HDEL', KEYS[1], 'building', 'building_on')
redis.call('DEL', KEYS[4])
return {'opened'}
