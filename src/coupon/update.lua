#!lua flags=allow-oom
-- Brings loaded coupons up to their records. Generations decide the order: an older record than the
-- one that is there changes nothing, and neither does the total shrink. Of the same generation, what
-- differs is brought up to the record: Redis missed it, or it was damaged.
--
-- KEYS  1 certificate  2 counters, then the coupons
-- ARGV  1 credential  2 generation of the service's state  3 '1' if the service is paused
--       then for each coupon: generation, total, starts_at, ends_at, paused, archived
-- Returns a certificate fault, or {'ok', how many were changed, place, …}: the places of
--       the coupons whose generation or total in Redis cannot be read, from 1; they are left alone
--@certificate
--@whole
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local changed, damaged = 0, {}
local held = redis.call('HMGET', KEYS[2], 'service_generation', 'paused')
local generation = whole(held[1]) or -1
-- An epoch that no change has reached yet knows no generation, and is paused or not as it was rebuilt.
if tonumber(ARGV[2]) > generation or (tonumber(ARGV[2]) == generation and ARGV[3] ~= held[2]) then
  redis.call('HSET', KEYS[2], 'service_generation', ARGV[2], 'paused', ARGV[3])
  changed = changed + 1
end
for key = 3, #KEYS do
  local at = 4 + (key - 3) * 6
  local state = redis.pcall('HMGET', KEYS[key], 'generation', 'total', 'starts_at', 'ends_at', 'paused', 'archived', 'id')
  local there = state[1] or state[2] or state[7]
  local of, total = whole(state[1]), whole(state[2])
  if state.err or (there and not (of and total)) then
    damaged[#damaged + 1] = key - 2
  elseif there then
    total = math.max(tonumber(ARGV[at + 1]), total)
    local same = total == tonumber(state[2])
    for field = 3, 6 do same = same and state[field] == ARGV[at + field - 1] end
    if tonumber(ARGV[at]) > of or (tonumber(ARGV[at]) == of and not same) then
      redis.call('HSET', KEYS[key], 'generation', ARGV[at], 'total', string.format('%.0f', total),
        'starts_at', ARGV[at + 2], 'ends_at', ARGV[at + 3], 'paused', ARGV[at + 4], 'archived', ARGV[at + 5])
      changed = changed + 1
    end
  end
end
return {'ok', changed, unpack(damaged)}
