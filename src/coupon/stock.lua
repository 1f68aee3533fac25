#!lua flags=no-writes
-- The live stock of some coupons, all read at one moment.
--
-- KEYS  1 certificate, then for each coupon: coupon, free
-- ARGV  1 credential
-- Returns a certificate fault, or
--       {'ok', now in ms, {total, next, settled, free, shares, credited, moved}, …}; {} for a coupon that is not loaded, {what} for
--       one of which this is damaged
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

-- A number of units, which has at most eight digits: one that is larger, or a Lua nil, would spoil the reply for all.
local function unit_count(text) return text and #text < 9 and string.match(text, '^%d+$') and tonumber(text) end

local FIELDS = {'total', 'next', 'settled', 'shares', 'credited', 'moved', 'id'}
local MISSING = {[4] = '1', [5] = '0', [6] = '0'} -- what a field stands for that a coupon in one share need not have
local function stock(coupon, free)
  local held, count = redis.pcall('HMGET', coupon, unpack(FIELDS)), redis.pcall('SCARD', free)
  if held.err then return {held.err} end
  if not held[1] and not held[2] and not held[7] then return {} end
  if type(count) ~= 'number' then return {count.err} end
  local counts = {}
  for place = 1, 6 do
    counts[place] = unit_count(held[place] or MISSING[place])
    if not counts[place] then return {'the field ' .. FIELDS[place]} end
  end
  return {counts[1], counts[2], counts[3], count, counts[4], counts[5], counts[6]}
end

local time = redis.call('TIME')
local reply = {'ok', time[1] * 1000 + math.floor(time[2] / 1000)}
for key = 2, #KEYS, 2 do reply[#reply + 1] = stock(KEYS[key], KEYS[key + 1]) end
return reply
