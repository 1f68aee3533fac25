-- Iterates over the issuances of a stream entry (queue/entry.rs): id (16 bytes), and what the entry says of it.
local OF_ONE = '2'
local OF_MANY = '3'
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
