#!lua flags=allow-oom
-- Takes stream entries of many apart: each of their issuances gets an entry of its own. Other entries stay.
--
-- KEYS  1 certificate  2 stream  3 in-flight
-- ARGV  1 credential  2 group  3 … the entries
-- Returns a certificate fault, or {'ok', how many issuances got one}
--@certificate
--@split
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end

redis.call('HLEN', KEYS[3]) -- an error here, if the key is of a wrong type, is before the first write
local count = 0
for place = 3, #ARGV do
  local found = redis.call('XRANGE', KEYS[2], ARGV[place], ARGV[place])[1]
  if found and found[2][1] == OF_MANY then count = count + #split(KEYS[2], KEYS[3], ARGV[2], ARGV[place]) end
end
return {'ok', count}
