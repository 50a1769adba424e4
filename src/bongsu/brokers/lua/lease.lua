-- Renew one replica's lease and read all live ones, by Redis's own clock, in one step.
--
-- KEYS[1]  ZSET  replica -> expiry, milliseconds of Redis TIME
-- KEYS[2]  HASH  replica -> what it says of itself (opaque JSON)
-- ARGV[1]  replica   ARGV[2]  its data   ARGV[3]  time to live, milliseconds
-- Returns  flat list: replica, data, replica, data, ... of every lease alive now.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], dead)
  redis.call('HDEL', KEYS[2], dead)
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
-- A cluster that is switched off for good leaves nothing behind.
redis.call('PEXPIRE', KEYS[1], 3600000)
redis.call('PEXPIRE', KEYS[2], 3600000)
return redis.call('HGETALL', KEYS[2])
