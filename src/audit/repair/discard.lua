#!lua flags=allow-oom
-- Takes out of the free set what is no unit of this share below the next one.
--
-- KEYS  1 certificate  2 coupon  3 free
-- ARGV  1 credential  2 member
-- Returns a certificate fault, or {'ok', 'discarded', 'moved' (it is a unit by now) or 'unloaded'}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

local state = redis.call('HMGET', KEYS[2], 'next', 'shares')
local next_serial, shares = tonumber(state[1]), tonumber(state[2] or '1')
if not next_serial then return {'ok', 'unloaded'} end
local serial = string.match(ARGV[2], '^[1-9]%d*$') and tonumber(ARGV[2])
if serial and serial < next_serial and (next_serial - serial) % shares == 0 then return {'ok', 'moved'} end
redis.call('SREM', KEYS[3], ARGV[2])
return {'ok', 'discarded'}
