-- Read a channel's position and publications in one step; the stream begins if there is none.
--
-- KEYS[1]  HASH     meta, see stream.lua
-- KEYS[2]  STREAM   window, see stream.lua
-- ARGV[1]  candidate epoch     ARGV[2]  incarnation     ARGV[3]  time to live of the meta, milliseconds
-- ARGV[4]  id of the publication that the page begins after (before, when reversed), or ''
-- ARGV[5]  most publications: 0 = only the position, negative = all
-- ARGV[6]  '1' = newest first, else ''
-- Returns  epoch, offset of the top, list of envelopes, and the present incarnation where the caller's is old
local window = KEYS[2]
local since, limit = ARGV[4], tonumber(ARGV[5])
local epoch, top, news = open(KEYS[1], window, ARGV[1], ARGV[2], ARGV[3])

local envelopes = {}
if limit ~= 0 then
  local range
  if ARGV[6] == '1' then
    range = {'XREVRANGE', window, since == '' and '+' or '(' .. since, '-'}
  else
    range = {'XRANGE', window, since == '' and '-' or '(' .. since, '+'}
  end
  if limit > 0 then
    range[5], range[6] = 'COUNT', limit
  end
  for index, entry in ipairs(redis.call(unpack(range))) do
    envelopes[index] = entry[2][2]
  end
end
return {epoch, top, envelopes, news}
