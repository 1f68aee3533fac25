#!lua flags=allow-oom
-- Opens the epoch that was built: compare-and-set on the term and the epoch, on the very instance
-- that it was built on, and only if what was built is all there.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 build marker
-- ARGV  1 term  2 epoch  3 group  4 how many are in flight
-- Returns {'opened'}, {'superseded'} (somebody else recovers), or {'incomplete', what is missing}
local held = redis.call('HMGET', KEYS[1], 'state', 'term', 'building', 'building_on')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] or held[3] ~= ARGV[2] then return {'superseded'} end
local info = redis.call('INFO', 'server', 'replication')
local run_id = string.match(info, 'run_id:(%x+)')
if held[4] ~= run_id then return {'incomplete', 'redis restarted meanwhile'} end
if redis.call('GET', KEYS[4]) ~= ARGV[2] then return {'incomplete', 'build marker'} end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[4]) then return {'incomplete', 'in-flight entries'} end
if redis.call('XLEN', KEYS[2]) ~= tonumber(ARGV[4]) then return {'incomplete', 'stream entries'} end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err or not groups[1] or groups[1][2] ~= ARGV[3] then return {'incomplete', 'consumer group'} end
redis.call('HSET', KEYS[1], 'state', 'open', 'epoch', ARGV[2], 'run_id', run_id,
  'replid', string.match(info, 'master_replid:(%x+)'))
redis.call('HDEL', KEYS[1], 'building', 'building_on')
redis.call('DEL', KEYS[4])
return {'opened'}
