#!lua
-- Determines what a request would be answered: whether the certificate fits, and whether Redis would let it write. It
-- writes nothing. That it has no flags is the point: Redis refuses it as it refuses reserve.lua, with READONLY
-- (it follows another), MISCONF (its disk fails), OOM (its memory has run out) or NOREPLICAS.
--
-- KEYS  1 certificate
-- ARGV  1 credential
-- Returns a certificate fault, or {'ok'}
--@certificate
local fault = certificate_fault(KEYS[1], ARGV[1])
if fault then return fault end
return {'ok'}
