-- Take a client out of a channel, whichever incarnation of its replica owns the entry.
--
-- KEYS[1..4]  as in presence_enter.lua
-- ARGV[1]  start of the caller   ARGV[2]  channel   ARGV[3]  client
-- Returns  1 where there was an entry, else 0
local old = redis.call('HGET', KEYS[1], ARGV[3])
if not old then
  return 0
end
local owner, size, at = string.match(old, '^(%x+):%d:(%d+):%d+:()')
local user = string.sub(old, at, at + size - 1)
redis.call('HDEL', KEYS[1], ARGV[3])
if redis.call('HINCRBY', KEYS[3], user, -1) <= 0 then
  redis.call('HDEL', KEYS[3], user)
end
if redis.call('HINCRBY', KEYS[2], owner, -1) <= 0 then
  redis.call('HDEL', KEYS[2], owner)
  -- Another incarnation's index is left to its sweep, which finds nothing here.
  if owner == ARGV[1] then
    redis.call('SREM', KEYS[4], ARGV[2])
  end
end
return 1
