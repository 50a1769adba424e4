-- Give a publication the next offset, keep it in the window and publish it, in one step.
--
-- KEYS[1]  HASH     meta, see stream.lua
-- KEYS[2]  STREAM   window, see stream.lua
-- KEYS[3]  channel  where subscribers listen
-- KEYS[4]  HASH     only with an idempotency key, or a relay's: offset, epoch of the first call
-- ARGV[1]  envelope before the position   ARGV[2]  envelope after it
-- ARGV[3]  size of the window, publications
-- ARGV[4]  time to live of the window     ARGV[5]  of the meta     ARGV[6]  of KEYS[4], milliseconds
-- ARGV[7]  candidate epoch                ARGV[8]  incarnation, see stream.lua
-- ARGV[9]  version, 20 digits, or ''      ARGV[10] version epoch, may be ''
-- ARGV[11] term of the relay, 20 digits, or ''
-- Returns  offset, epoch, outcome (0 appended, 1 cached: the first call's position, 2 suppressed: the top,
--          3 stale: refused, a later term was here), and the present incarnation where the caller's is old
local meta, window, channel, result = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local term = ARGV[11]
if term ~= '' then
  if (redis.call('HGET', meta, 'term') or '') > term then
    return {0, '', 3}
  end
  redis.call('HSET', meta, 'term', term)
  redis.call('PEXPIRE', meta, ARGV[5])
end
if result then
  local first = redis.call('HMGET', result, 'offset', 'epoch')
  if first[1] then
    return {first[1], first[2], 1}
  end
end

local epoch, top, news = open(meta, window, ARGV[7], ARGV[8], ARGV[5])

local version, version_epoch = ARGV[9], ARGV[10]
if version ~= '' then
  local last = redis.call('HMGET', meta, 'version', 'version_epoch')
  -- Compared as text of one length: as numbers, versions from 2^53 on would lose digits.
  if last[1] and version <= last[1] and (version_epoch == '' or version_epoch == last[2]) then
    return {top, epoch, 2, news}
  end
  redis.call('HSET', meta, 'version', version, 'version_epoch', version_epoch)
end

local offset = redis.call('HINCRBY', meta, 'offset', 1)
local envelope = ARGV[1] .. struct.pack('>I8', offset) .. epoch .. ARGV[2]
redis.call('XADD', window, 'MAXLEN', ARGV[3], offset, 'p', envelope)
redis.call('PEXPIRE', window, ARGV[4])
redis.call('PUBLISH', channel, envelope)
if result then
  redis.call('HSET', result, 'offset', offset, 'epoch', epoch)
  redis.call('PEXPIRE', result, ARGV[6])
end
return {offset, epoch, 0, news}
