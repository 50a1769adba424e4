-- First part of append.lua and read.lua: open a channel's stream.
--
-- meta    HASH    epoch, offset (top), incarnation (of the Redis that the epoch began in), and of the last
--                 publication that had one: version (20 digits), version_epoch; and the latest term
--                 (20 digits) of a relay that published here
-- window  STREAM  the last publications: id = offset, field p = envelope
--
-- A Redis that restarted from older data, or a replica promoted behind its master, would hand out offsets a
-- second time; subscribers would drop real publications as known ones. Its incarnation (run_id and
-- master_replid) differs, so a new epoch begins there.
--
-- candidate    epoch to take when one begins, 8 ASCII characters, never used before
-- incarnation  as the caller last read it
-- ttl          of the meta, milliseconds
-- Returns epoch, top, and the present incarnation where it differs from the caller's, else nil.
local function open(meta, window, candidate, incarnation, ttl)
  local known = redis.call('HMGET', meta, 'epoch', 'offset', 'incarnation')
  local epoch, offset = known[1], known[2]
  local news
  if known[3] ~= incarnation then
    -- master_replid also changes under connected callers (when a first replica comes, when the last one has
    -- been gone for long). So the caller may be the one who is behind: were it believed, two callers would
    -- begin epochs against each other for ever.
    local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
    local present = string.match(info, 'run_id:(%x+)') .. string.match(info, 'master_replid:(%x+)')
    if present ~= incarnation then
      news = present
    end
    if known[3] ~= present then
      epoch, offset = candidate, 0
      -- Also there without a meta, when Redis evicted only that.
      redis.call('UNLINK', window)
      redis.call('HSET', meta, 'epoch', epoch, 'offset', offset, 'incarnation', present)
    end
  end
  redis.call('PEXPIRE', meta, ttl)
  return epoch, offset, news
end
