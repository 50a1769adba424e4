-- Publish outside the stream, unless the same idempotency key did so before.
--
-- KEYS[1]  channel  where subscribers listen
-- KEYS[2]  HASH     offset, epoch of the first call, as append.lua keeps it: 0 and '' here
-- ARGV[1]  payload  ARGV[2]  time to live of KEYS[2], milliseconds
-- Returns  1 when it was published, 0 when it was before
if redis.call('HSETNX', KEYS[2], 'offset', 0) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], 'epoch', '')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
