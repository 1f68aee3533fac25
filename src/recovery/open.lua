#!lua flags=allow-oom
-- Opens the epoch that was built: compare-and-set on the term and the epoch, on the very instance
-- that it was built on, and only if what was built is all there. Tells everyone.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 dead  5 loaded coupons  6 build marker
-- ARGV  1 term  2 epoch  3 group  4 how many are in flight  5 how many of them are dead letters
--       6 how many coupons are loaded  7 which ledger it was built from  8 the command that announces, and
--       the channel of the outcomes, with a space between
-- Returns {'opened'}, {'superseded'} (another process recovers), {'restarted'} (this is not the
--   instance that was closed), or {'incomplete', what is missing}
local held = redis.call('HMGET', KEYS[1], 'state', 'term', 'building', 'building_on')
if held[1] ~= 'closed' or held[2] ~= ARGV[1] or held[3] ~= ARGV[2] then return {'superseded'} end
local info = redis.call('INFO', 'server', 'replication')
local run_id = string.match(info, 'run_id:(%x+)')
if held[4] ~= run_id then return {'restarted'} end
if redis.call('GET', KEYS[6]) ~= ARGV[2] then return {'incomplete', 'build marker'} end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[4]) then return {'incomplete', 'in-flight entries'} end
if redis.call('XLEN', KEYS[2]) ~= tonumber(ARGV[4]) then return {'incomplete', 'stream entries'} end
if redis.call('HLEN', KEYS[4]) ~= tonumber(ARGV[5]) then return {'incomplete', 'dead letters'} end
if redis.call('SCARD', KEYS[5]) ~= tonumber(ARGV[6]) then return {'incomplete', 'coupons'} end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err or not groups[1] or groups[1][2] ~= ARGV[3] then return {'incomplete', 'consumer group'} end
if redis.call('XPENDING', KEYS[2], ARGV[3])[1] ~= tonumber(ARGV[5]) then
  return {'incomplete', 'owner of the dead letters'}
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', 'open', 'epoch', ARGV[2], 'run_id', run_id,
  'replid', string.match(info, 'master_replid:(%x+)'), 'opened_at', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), 'ledger', ARGV[7])
redis.call('HDEL', KEYS[1], 'building', 'building_on', 'behind')
redis.call('DEL', KEYS[6])
local announce, channel = string.match(ARGV[8], '^(%u+) (.*)$')
redis.call(announce, channel, 'epoch ' .. ARGV[2])
return {'opened'}
