-- Included by the scripts that read stream entries, in place of their line "--@entry".
-- The name of an entry's first field is its version.
local OF_ONE = '2'  -- the value of that field is an issuance's id (16 bytes) and its text
local OF_MANY = '3' -- that field is empty, and each other one is an issuance's: its id, its text
-- The text is what the in-flight hash holds behind the entry's id when the issuance is accepted.
-- Iterates over the issuances of an entry: id, text.
local function issuances(fields)
  local place, is_many = 1, fields[1] == OF_MANY
  return function()
    place = place + 2
    if is_many then return fields[place], fields[place + 1] end
    if place == 3 and fields[1] == OF_ONE then
      return string.sub(fields[2], 1, 16), string.sub(fields[2], 17)
    end
  end
end
