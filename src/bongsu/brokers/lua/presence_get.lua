-- The entries of a channel, unless there are too many to read in one step.
--
-- KEYS[1]  HASH  client -> entry (presence_enter.lua)
-- ARGV[1]  most entries
-- Returns  flat list: client, entry, client, entry, ...; or their number, when there are more
local count = redis.call('HLEN', KEYS[1])
if count > tonumber(ARGV[1]) then
  return count
end
return redis.call('HGETALL', KEYS[1])
