-- Put a client into a channel, or replace what is known of it.
--
-- KEYS[1]  HASH  client -> start:announced:size of user:size of conn_info:user conn_info chan_info
-- KEYS[2]  HASH  start -> number of entries that this incarnation owns in the channel
-- KEYS[3]  HASH  user -> number of entries
-- KEYS[4]  SET   channels of this partition in which the writing incarnation owns, or owned, entries
-- ARGV[1]  start of the writer   ARGV[2]  channel   ARGV[3]  client   ARGV[4]  user   ARGV[5]  the entry
-- Returns  1 where there was an entry of this client already, else 0
local old = redis.call('HGET', KEYS[1], ARGV[3])
local owner = old and string.match(old, '^(%x+):')
if not old then
  redis.call('HINCRBY', KEYS[3], ARGV[4], 1)
end
if owner ~= ARGV[1] then
  if owner and redis.call('HINCRBY', KEYS[2], owner, -1) <= 0 then
    redis.call('HDEL', KEYS[2], owner)
  end
  redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
  redis.call('SADD', KEYS[4], ARGV[2])
end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[5])
return old and 1 or 0
