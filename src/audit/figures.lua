#!lua flags=no-writes
-- The figures of some coupons and of the queue, all read at one moment.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 counters  5 damaged  6 dead, then for each coupon: coupon, free
-- ARGV  1 epoch
-- Returns {'uncertified'} or {'stale', epoch}, or
--       {'ok', in flight, dead letters among them, accepted so far, set aside as unreadable, the last stream entry ('0-0' if there is none),
--        {total, next, settled, free, generation}, …}; {} for a coupon that is not loaded
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local reply = {'ok', redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[6]), tonumber(redis.call('HGET', KEYS[4], 'accepted') or 0),
  redis.call('HLEN', KEYS[5]), last and last[1] or '0-0'}
for key = 7, #KEYS, 2 do
  local held = redis.call('HMGET', KEYS[key], 'id', 'total', 'next', 'settled', 'generation')
  if held[1] then
    reply[#reply + 1] = {tonumber(held[2]), tonumber(held[3]), tonumber(held[4]),
      redis.call('SCARD', KEYS[key + 1]), tonumber(held[5])}
  else
    reply[#reply + 1] = {}
  end
end
return reply
