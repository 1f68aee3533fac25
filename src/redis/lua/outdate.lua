-- Outdates loads. They ask only whether the counter is as it was when they began (load.lua). One that cannot be
-- counted on gets a value that it never had.
local function outdate(counters, field, times)
  local count = redis.call('HGET', counters, field)
  if count and not (#count < 16 and string.match(count, '^%d+$')) then
    local time = redis.call('TIME')
    redis.call('HSET', counters, field, string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
  else
    redis.call('HINCRBY', counters, field, times)
  end
end
