-- Takes tokens out of buckets. A bucket that is not there is full.
--
-- KEYS    1.. buckets: "tokens ms", what it held and when
-- ARGV    1 tokens per second, 2 tokens in a full bucket
--         3.. for each key, the tokens that were had unasked: they are taken in any case, and the
--         bucket may owe them, at most as many as it holds when full
-- Returns for each key: 0 if one more token was taken, else milliseconds until there is one (at least
--         1); milliseconds until the bucket is half full (0 if it is); whole tokens left
--
-- No certificate is asked for: a bucket belongs to no epoch and says nothing of stock. One that is
-- lost, or older than it should be, lets a client ask a little more, and nothing else.
-- A question that is refused, and owes nothing, writes nothing: a client who asks in vain costs no fsync.
-- Each bucket expires when it would be full. One that cannot be read counts as missing. One that is of
-- later than now was written before the clock was set back: it fills from now on, and is written anew.

local rate, burst = tonumber(ARGV[1]) / 1000, tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}

for place, key in ipairs(KEYS) do
  local debt = tonumber(ARGV[2 + place])
  local tokens = burst
  local bucket = redis.pcall('GET', key)
  local held, at = string.match(type(bucket) == 'string' and bucket or '', '^(%-?%d+%.?%d*) (%d+)$')
  local of_later = false
  if held then
    of_later = tonumber(at) > now
    tokens = math.min(burst, tonumber(held) + math.max(0, now - tonumber(at)) * rate)
  end
  tokens = math.max(-burst, tokens - debt)
  local taken = tokens >= 1
  if taken then
    tokens = tokens - 1
  end
  if taken or debt > 0 or of_later then
    local full = math.ceil((burst - tokens) / rate)
    redis.call('SET', key, string.format('%.3f %.0f', tokens, now), 'PX', string.format('%.0f', full + 1))
  end
  answers[3 * place - 2] = taken and 0 or math.max(1, math.ceil((1 - tokens) / rate))
  answers[3 * place - 1] = math.max(0, math.ceil((burst / 2 - tokens) / rate))
  answers[3 * place] = math.max(0, math.floor(tokens))
end

return answers
