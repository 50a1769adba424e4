-- Take a dead incarnation for sweeping, or keep one that was taken.
--
-- The lock only saves work: two who sweep the same one remove, and report, each entry once (presence_sweep.lua).
--
-- KEYS[1]  ZSET  start -> not to be swept before, milliseconds of Redis TIME (lease_renew.lua)
-- ARGV[1]  for how long nobody else may take it, milliseconds   ARGV[2]  a start, or '' for any that is free
-- Returns  the start, or nil when none is free
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local start = ARGV[2]
if start == '' then
  start = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
  if not start then
    return false
  end
end
redis.call('ZADD', KEYS[1], now + ARGV[1], start)
return start
