-- Record a poll. Returns 1 if it came before the interval was over, which makes the interval longer.
--
-- KEYS: the authorization, and the state of its polls.
-- ARGV: the first interval, the increase, and the tolerance, all in milliseconds.
local authorization, polls = KEYS[1], KEYS[2]
local first, increase, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ttl = redis.call('PTTL', authorization)
if ttl < 0 then return 0 end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval = tonumber(redis.call('HGET', polls, 'interval') or first)
local elapsed = now - tonumber(redis.call('HGET', polls, 'last') or 0)
-- A negative time has elapsed if Redis' clock was set back.
local too_early = elapsed >= 0 and elapsed < interval - tolerance
if too_early then interval = interval + increase end
redis.call('HSET', polls, 'interval', string.format('%.0f', interval), 'last', string.format('%.0f', now))
redis.call('PEXPIRE', polls, ttl)
return too_early and 1 or 0
