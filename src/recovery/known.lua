#!lua flags=no-writes
-- What the certificate says, whether it fits or not. What of it cannot be read is missing.
--
-- KEYS  1 certificate
-- Returns {the term that it was closed or opened under last, '0' if there is none, the ledger that the data
--   belongs to or '', '1' if the data is out of date, else '0', the run_id of this instance}
--@certificate_fields
local held = certificate_fields(KEYS[1])
-- A program that does not know of it opens without taking it away.
local out_of_date = held.behind and held.state == 'closed'
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {held.term, held.ledger or '', out_of_date and '1' or '0', run_id}
