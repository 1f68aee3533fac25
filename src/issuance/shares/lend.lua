#!lua
-- Lends units of a share of a coupon to another share: each is in flight for it, as for a user, until the ledger has its
-- move. Half of what is free here, and so the last unit too.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 counters  5 coupon  6 holders  7 free
-- ARGV  1 credential  2 '1' if one stream entry holds all that is lent, '0' if each has its own
--       3 what stands for the other share, then issuance ids (16 bytes each): as many as units are lent at most
-- Returns a certificate fault, or
--       {'ok', now in ms, '1' if the coupon is loaded and sound or '0', entry, unit, …}: of each unit that was lent its
--       stream entry, in the order of the ids
--@certificate
--@whole
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local HOP_LAST = 4278190080 -- units from here on were moved as often as there are numbers for: 255 hops

local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = call('HMGET', KEYS[5], 'id', 'total', 'next', 'shares')
local total, next_serial, shares = whole(state[2]), whole(state[3]), whole(state[4])
if not (state[1] and total and next_serial and shares) then return {'ok', now, '0'} end
local counters = call('HMGET', KEYS[4], 'accepted', 'settled')
local sequence = whole(counters[1]) or (whole(counters[2]) or 0) + call('HLEN', KEYS[3])
local held = call('HGET', KEYS[6], ARGV[3]) or ''
call('XLEN', KEYS[2]) -- an error here, if the key is of a wrong type, is before the first write

local fresh = next_serial <= total and math.floor((total - next_serial) / shares) + 1 or 0
local most = math.min(#ARGV - 3, math.ceil((call('SCARD', KEYS[7]) + fresh) / 2))
local lent = {}
for _, unit in ipairs(most > 0 and call('SRANDMEMBER', KEYS[7], most) or {}) do
  local number = #unit < 11 and string.find(unit, '^[1-9]%d*$') and tonumber(unit)
  if number and number < HOP_LAST then lent[#lent + 1] = unit end
end
local freed = #lent
for nth = 1, math.min(most - freed, fresh) do
  lent[#lent + 1] = string.format('%.0f', next_serial + (nth - 1) * shares)
end
if #lent == 0 then return {'ok', now, '1'} end

local flights, ids = {}, {}
for nth, unit in ipairs(lent) do
  local id = ARGV[3 + nth]
  ids[nth] = id
  flights[nth * 2 - 1] = id
  flights[nth * 2] = string.format('%s %.0f %.0f 1 %s %s', unit, sequence + nth, now, state[1], ARGV[3])
end
local of_all = ARGV[2] == '1' and #lent > 1 and call('XADD', KEYS[2], '*', '3', '', unpack(flights))
local reply = {'ok', now, '1'}
for nth, unit in ipairs(lent) do
  local entry = of_all or call('XADD', KEYS[2], '*', '2', flights[nth * 2 - 1] .. flights[nth * 2])
  flights[nth * 2] = entry .. ' ' .. flights[nth * 2]
  reply[#reply + 1] = entry
  reply[#reply + 1] = unit
end
call('HSET', KEYS[3], unpack(flights))
call('HSET', KEYS[4], 'accepted', string.format('%.0f', sequence + #lent))
call('HSET', KEYS[6], ARGV[3], held .. table.concat(ids))
if freed > 0 then call('SREM', KEYS[7], unpack(lent, 1, freed)) end
if #lent > freed then call('HSET', KEYS[5], 'next', string.format('%.0f', next_serial + (#lent - freed) * shares)) end
return reply
