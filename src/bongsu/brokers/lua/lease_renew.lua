-- Renew one replica's lease and read all live ones, by Redis's own clock, in one step.
--
-- KEYS[1]  ZSET  start:replica -> expiry, milliseconds of Redis TIME; `start` marks one incarnation
-- KEYS[2]  HASH  start:replica -> what it says of itself (opaque JSON), of live ones only
-- KEYS[3]  ZSET  start -> not to be swept before, milliseconds of Redis TIME: the dead (sweep_claim.lua)
-- ARGV[1]  start   ARGV[2]  replica   ARGV[3]  its data   ARGV[4]  time to live, milliseconds
-- ARGV[5]  '1' when the caller has held this lease before
-- ARGV[6..]  pairs: a start that the caller has given up, milliseconds until it may be swept
-- Returns  {'held', start:replica, data, start:replica, data, ...} of every live lease, ascending by expiry;
--          {'evicted'}: nothing was renewed, others took this incarnation for dead;
--          {'forgotten'}: nothing was renewed, Redis does not know it (emptied, or older data)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl = tonumber(ARGV[4])
local member = ARGV[1] .. ':' .. ARGV[2]

for i = 6, #ARGV, 2 do
  redis.call('ZADD', KEYS[3], now + ARGV[i + 1], ARGV[i])
end

-- An expired lease has a second time to live in which to come back before it counts as dead: else a hiccup of
-- one connection would tell everybody that thousands left and joined.
if redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf') == 0 then
  -- Nobody is alive, so Redis stood still or all were cut off: each gets that second time from now.
  for _, expired in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    redis.call('ZADD', KEYS[1], now, expired)
  end
else
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - ttl))) do
    redis.call('ZREM', KEYS[1], dead)
    redis.call('ZADD', KEYS[3], 0, string.match(dead, '^(%x+):'))
  end
end

if ARGV[5] == '1' and not redis.call('ZSCORE', KEYS[1], member) then
  return {redis.call('ZSCORE', KEYS[3], ARGV[1]) and 'evicted' or 'forgotten'}
end

redis.call('ZADD', KEYS[1], now + ttl, member)
redis.call('HSET', KEYS[2], member, ARGV[3])
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('HDEL', KEYS[2], expired)
end

local reply = {'held'}
for _, alive in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  reply[#reply + 1] = alive
  reply[#reply + 1] = redis.call('HGET', KEYS[2], alive)
end
return reply
