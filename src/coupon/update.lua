#!lua flags=allow-oom
-- Brings loaded coupons up to their records. Generations decide the order: an older record than the
-- one that is there changes nothing, and neither does the total shrink.
--
-- KEYS  1 certificate  2 counters, then the coupons
-- ARGV  1 epoch  2 generation of the service's state  3 '1' if the service is paused
--       then for each coupon: generation, total, starts_at, ends_at, paused, archived
-- Returns {'uncertified'} or {'stale', epoch}, or {'ok', how many were changed}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local changed = 0
local held = tonumber(redis.call('HGET', KEYS[2], 'service_generation') or -1)
if tonumber(ARGV[2]) > held then
  redis.call('HSET', KEYS[2], 'service_generation', ARGV[2], 'paused', ARGV[3])
  changed = changed + 1
end
for key = 3, #KEYS do
  local at = 4 + (key - 3) * 6
  local state = redis.call('HMGET', KEYS[key], 'generation', 'total')
  if state[1] and tonumber(ARGV[at]) > tonumber(state[1]) then
    local total = math.max(tonumber(ARGV[at + 1]), tonumber(state[2]))
    redis.call('HSET', KEYS[key], 'generation', ARGV[at], 'total', string.format('%.0f', total),
      'starts_at', ARGV[at + 2], 'ends_at', ARGV[at + 3], 'paused', ARGV[at + 4], 'archived', ARGV[at + 5])
    changed = changed + 1
  end
end
return {'ok', changed}
