-- Which leases are alive, by Redis's own clock.
--
-- KEYS[1]  ZSET  start:replica -> expiry, milliseconds of Redis TIME (lease_renew.lua)
-- Returns  list of start:replica
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
