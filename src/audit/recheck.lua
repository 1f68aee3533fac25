#!lua flags=no-writes
-- Reads again, at one moment, what an audit could not explain.
--
-- KEYS  1 certificate  2 stream  3 in-flight  4 coupon  5 holders  6 free
-- ARGV  1 credential, then for each suspicion: issuance id (16 bytes), user, stream entry, serial ('0' for
--       none), the id of a second issuance; each '' for none
-- Returns a certificate fault, or {'ok', '1' if the coupon is loaded or '0',
--       then for each suspicion: {in-flight value or '', '1' if the user's dedupe has the id, '1' if
--       the stream has the entry, '1' if the serial is free, in-flight value of the second or ''}, …}
--@certificate
--@units
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[4], 'id', 'next')
local next_serial = tonumber(state[2])
local reply = {'ok', state[1] and '1' or '0'}
for at = 2, #ARGV, 5 do
  local id, user, entry, serial, second = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local held, counted = user ~= '' and redis.call('HGET', KEYS[5], user) or '', '0'
  for i = 1, #held, 16 do
    if string.sub(held, i, i + 15) == id then counted = '1' end
  end
  local there = entry ~= '' and #redis.call('XRANGE', KEYS[2], entry, entry) == 1
  local free = next_serial and serial ~= '0' and is_free(KEYS[6], next_serial, serial)
  reply[#reply + 1] = {redis.call('HGET', KEYS[3], id) or '', counted, there and '1' or '0',
    free and '1' or '0', second ~= '' and redis.call('HGET', KEYS[3], second) or ''}
end
return reply
