-- Remove some of what a dead incarnation left in a channel. Called with the returned cursor until that is 0.
--
-- KEYS[1..4]  as in presence_enter.lua, KEYS[4] the dead one's
-- ARGV[1]  start of the dead one   ARGV[2]  channel   ARGV[3]  cursor, at first 0   ARGV[4]  about how many
-- Returns  {cursor, client, entry, client, entry, ...} with what was removed
local page = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
local reply = {page[1]}
local entries = page[2]
for i = 1, #entries, 2 do
  local client, entry = entries[i], entries[i + 1]
  local owner, size, at = string.match(entry, '^(%x+):%d:(%d+):%d+:()')
  if owner == ARGV[1] then
    redis.call('HDEL', KEYS[1], client)
    local user = string.sub(entry, at, at + size - 1)
    if redis.call('HINCRBY', KEYS[3], user, -1) <= 0 then
      redis.call('HDEL', KEYS[3], user)
    end
    redis.call('HINCRBY', KEYS[2], owner, -1)
    reply[#reply + 1] = client
    reply[#reply + 1] = entry
  end
end
if page[1] == '0' then
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('SREM', KEYS[4], ARGV[2])
end
return reply
