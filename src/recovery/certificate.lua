-- Included by every script in place of its line "--@certificate".
-- The data may be used only while the certificate names the epoch that the caller's keys carry and
-- this very Redis instance: a restart, a flush, a rewind or a promoted replica changes one of them.
-- Returns nil when all is well, else the one-element reply that the script must return at once:
-- "uncertified" (nobody may go on until a recovery has certified the data) or
-- "stale", the open epoch (the caller's keys belong to an earlier one) and the ledger that it belongs to.
local function certificate_fault(key, epoch)
  local held = redis.call('HMGET', key, 'state', 'epoch', 'run_id', 'replid', 'ledger')
  if held[1] ~= 'open' then return {'uncertified'} end
  local info = redis.call('INFO', 'server', 'replication')
  if not string.find(info, 'run_id:' .. held[3] .. '\r', 1, true)
    or not string.find(info, 'master_replid:' .. held[4] .. '\r', 1, true) then
    return {'uncertified'}
  end
  if held[2] ~= epoch then return {'stale', held[2], held[5] or ''} end
  return nil
end
