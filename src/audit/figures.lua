#!lua flags=no-writes
-- The figures of some coupons and of the queue, all read at one moment.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 counters  5 damaged  6 dead, then for each coupon: coupon, free
-- ARGV  1 credential
-- Returns a certificate fault, or
--       {'ok', in flight, dead letters among them, accepted so far, set aside as unreadable, the last stream entry ('0-0' if there is none),
--        {total, next, settled, free, shares, credited, moved, generation}, …}; {} for a coupon that is not loaded, {what} for one of
--        which this is damaged
--@certificate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local FIELDS = {'total', 'next', 'settled', 'shares', 'credited', 'moved', 'generation', 'id'}
local MISSING = {[4] = '1', [5] = '0', [6] = '0'} -- what a field stands for that a coupon in one share need not have
local function figures(coupon, free)
  local held, count = redis.pcall('HMGET', coupon, unpack(FIELDS)), redis.pcall('SCARD', free)
  if held.err then return {held.err} end
  if not held[1] and not held[2] and not held[8] then return {} end
  if type(count) ~= 'number' then return {count.err} end
  if not held[8] then return {'the field id'} end
  local counts = {}
  for place = 1, 7 do
    counts[place] = whole(held[place] or MISSING[place])
    if not counts[place] then return {'the field ' .. FIELDS[place]} end
  end
  return {counts[1], counts[2], counts[3], count, counts[4], counts[5], counts[6], counts[7]}
end

local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local reply = {'ok', redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[6]),
  whole(redis.call('HGET', KEYS[4], 'accepted')) or 0, redis.call('HLEN', KEYS[5]), last and last[1] or '0-0'}
for key = 7, #KEYS, 2 do reply[#reply + 1] = figures(KEYS[key], KEYS[key + 1]) end
return reply
