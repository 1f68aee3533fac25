#!lua flags=allow-oom
-- Takes over entries of consumers that have no fresh heartbeat: their process is gone, or has stopped
-- for so long that it may as well be. What it decided late is adopted, and settled once, by the guard.
-- A dead consumer with nothing pending is deleted, in this same script: deleting one that has entries
-- would lose them.
--
-- KEYS  1 certificate  2 stream  3 workers
-- ARGV  1 credential  2 group  3 consumer that claims  4 consumer of dead letters (never claimed from)
--       5 a heartbeat older than this many ms is stale  6 how many entries at most
-- Returns a certificate fault, or {'ok', consumers deleted, {entry, …}},
--       each entry as XCLAIM returns it
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed, deleted = {}, 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], ARGV[2])) do
  local consumer = {}
  for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
  local name = consumer.name
  local room = tonumber(ARGV[6]) - #claimed
  if name ~= ARGV[3] and name ~= ARGV[4] and room > 0 then
    local beat = redis.call('HGET', KEYS[3], name)
    local at = beat and tonumber(string.match(beat, '^%d+')) or 0
    -- One from the future is stale too: the clock was set back, and a live worker has sent another since.
    if math.abs(now - at) > tonumber(ARGV[5]) then
      if consumer.pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], name)
        redis.call('HDEL', KEYS[3], name)
        deleted = deleted + 1
      else
        local ids = {}
        for i, pending in ipairs(redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', room, name)) do
          ids[i] = pending[1]
        end
        if #ids > 0 then
          for _, entry in ipairs(redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, unpack(ids))) do
            claimed[#claimed + 1] = entry
          end
        end
      end
    end
  end
end
return {'ok', deleted, claimed}
