#!lua flags=no-writes
-- Asks whether the certificate fits.
--
-- KEYS  1 certificate
-- ARGV  1 an epoch (any)
-- Returns {'uncertified'}, {'stale', epoch} or {'ok'}
--@certificate
return certificate_fault(KEYS[1], ARGV[1]) or {'ok'}
