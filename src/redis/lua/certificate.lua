-- Every script that works under the open epoch begins with this, and has these:
-- KEYS  1 certificate
-- ARGV  1 credential: the epoch that the caller's keys name and the term that the caller knows it to be open under,
--       with a space between
-- Returns nil when all is well, else the reply that the script returns before it does anything, a certificate fault:
--       {'uncertified'}: nobody may go on until a recovery has certified the data
--       {'stale', the open epoch, the ledger that it belongs to, its term, the run_id of this instance, when it was
--        opened, in ms}: the caller knows of another opening
-- The data may be used only while the certificate names that epoch, that term and this very Redis instance: a
-- restart, a flush, a rewind or a promoted replica changes one of them; and an old primary that comes back, with a
-- certificate that fits, has an older term. A certificate that cannot be read counts as missing.
local function certificate_fault(key, credential)
  local held = redis.pcall('HMGET', key, 'state', 'epoch', 'run_id', 'replid', 'ledger', 'term')
  if held[1] ~= 'open' or not (held[2] and held[3] and held[4]) then return {'uncertified'} end
  local info = redis.call('INFO', 'server', 'replication')
  if not string.find(info, 'run_id:' .. held[3] .. '\r', 1, true)
    or not string.find(info, 'master_replid:' .. held[4] .. '\r', 1, true) then
    return {'uncertified'}
  end
  if held[2] .. ' ' .. (held[6] or '0') ~= credential then
    local opened_at = redis.call('HGET', key, 'opened_at') or '0'
    return {'stale', held[2], held[5] or '', held[6] or '0', held[3], opened_at}
  end
  return nil
end
