#!lua flags=allow-oom
-- Puts an in-flight value back that was lost, from its stream entry. Only if it is still missing, its
-- user's dedupe still has the id, and the entry is still there. Its unit stays its own only if no
-- other issuance can get it; else it has none, and a worker finds it another: then it gets a fresh entry that
-- says so, for the two must agree; so does one whose entry is of many, which others are in flight under.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 counters  5 coupon  6 holders  7 free
-- ARGV  1 credential  2 issuance id (16 bytes)  3 entry id  4 '1' if no other issuance has its unit, else '0'
--       5 group
-- Returns a certificate fault, or {'ok', what}: what is 'put back', 'present', 'gone' (the
--   entry is), 'strange' (the user's dedupe does not have it) or 'unloaded'
--@certificate
--@entry
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local next_serial = tonumber(redis.call('HGET', KEYS[5], 'next'))
if not next_serial then return {'ok', 'unloaded'} end
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then return {'ok', 'present'} end
local found = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])[1]
if not found then return {'ok', 'gone'} end
local is_many, text = found[2][1] == OF_MANY, nil
for id, of_id in issuances(found[2]) do
  if id == ARGV[2] then text = of_id end
end
local named, at, nth, coupon, user = string.match(text or '', '^(%d+) %d+ (%d+) (%d+) (%S+) (%S+)$')
if not named then return {'ok', 'gone'} end
local settled = string.match(redis.call('HGET', KEYS[4], 'settled') or '', '^%d+$') or '0'
local held, counted = redis.call('HGET', KEYS[6], user) or '', false
for i = 1, #held, 16 do counted = counted or string.sub(held, i, i + 15) == ARGV[2] end
if not counted then return {'ok', 'strange'} end

local serial = named
if ARGV[4] ~= '1' or is_free(KEYS[7], next_serial, serial) then
  serial = '0'
end
-- Its place in the queue may have been another in an earlier epoch: it is the first that is not settled.
local place = string.format('%.0f', tonumber(settled) + 1)
local rest = table.concat({serial, place, at, nth, coupon, user}, ' ')
local name = ARGV[3]
if is_many or serial ~= named then
  if not is_many then
    redis.call('XACK', KEYS[2], ARGV[5], name)
    redis.call('XDEL', KEYS[2], name)
  end
  name = redis.call('XADD', KEYS[2], '*', OF_ONE, ARGV[2] .. rest)
end
redis.call('HSET', KEYS[3], ARGV[2], name .. ' ' .. rest)
return {'ok', 'put back'}
