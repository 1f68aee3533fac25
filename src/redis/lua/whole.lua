-- The number that a text is, or nil if it is no whole number as it is kept: arithmetic on anything else would
-- stop a script, and a Lua nil would end a reply.
local function whole(text) return text and #text < 16 and string.match(text, '^%d+$') and tonumber(text) end
