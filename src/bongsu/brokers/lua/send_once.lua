-- Publish outside the stream, unless the same idempotency key did so before.
--
-- KEYS[1]  channel  where subscribers listen
-- KEYS[2]  HASH     offset, epoch of the first call, as append.lua keeps it: 0 and '' here
-- KEYS[3]  HASH     only for a relay: meta, see stream.lua
-- ARGV[1]  payload  ARGV[2]  time to live of KEYS[2], and at least of KEYS[3], milliseconds
-- ARGV[3]  term of the relay, 20 digits, or ''
-- Returns  1 when it was published, 0 when it was before, 3 when it was refused: a later term was here
local meta, term = KEYS[3], ARGV[3]
if meta then
  if (redis.call('HGET', meta, 'term') or '') > term then
    return 3
  end
  redis.call('HSET', meta, 'term', term)
  if redis.call('PTTL', meta) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', meta, ARGV[2])
  end
end
if redis.call('HSETNX', KEYS[2], 'offset', 0) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], 'epoch', '')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
