-- Count an event and return 0, or return the milliseconds until the window ends.
--
-- KEYS: the counter. ARGV: the limit, and the window in seconds.
local counter, limit, window = KEYS[1], tonumber(ARGV[1]), ARGV[2]

-- A counter that would outlive its window was written before Redis' clock was set back.
if redis.call('PTTL', counter) > window * 1000 then redis.call('DEL', counter) end
if tonumber(redis.call('GET', counter) or 0) >= limit then
    return math.max(redis.call('PTTL', counter), 1)
end
if redis.call('INCR', counter) == 1 then redis.call('EXPIRE', counter, window) end
return 0
