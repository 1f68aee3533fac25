-- Reads a certificate which need not fit. What of it cannot be read is missing: a field, or all if the key is no
-- hash. Terms grow by one a recovery, so one with more digits is damaged: none could ever come after it.
local function certificate_fields(key)
  local held = redis.pcall('HMGET', key, 'state', 'term', 'epoch', 'ledger', 'behind')
  local function uuid(text) return text and #text == 36 and string.match(text, '^%x+%-%x+%-%x+%-%x+%-%x+$') end
  local term = held[2] and #held[2] < 16 and string.match(held[2], '^%d+$') or '0'
  return {state = held[1], term = term, epoch = uuid(held[3]), ledger = uuid(held[4]), behind = held[5]}
end
