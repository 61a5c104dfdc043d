-- Reserves the next free slots, and returns how far away the first is. All times are in microseconds of Redis' clock,
-- so that the hosts' clocks do not matter. A slot more than a minute ahead is stale: Redis was replaced, or its
-- clock moved back.
-- KEYS: the next free slot. ARGV: the interval between slots, their number.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local slot = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
if not (slot <= now + 60000000) then slot = now end
redis.call('SET', KEYS[1], string.format('%.0f', slot + ARGV[1] * ARGV[2]), 'PX', 60000)
return string.format('%.0f', slot - now)
