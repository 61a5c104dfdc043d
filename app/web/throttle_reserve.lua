-- Count an operation that starts and return 0, or return the milliseconds until another may start.
--
-- KEYS: the operations of this address that have not succeeded (by the time at which each is forgotten),
--       and how many each of its callers has running.
-- ARGV: the operation, its caller, both limits, and the window in milliseconds.
local unfinished, running = KEYS[1], KEYS[2]
local operation, caller, limit, limit_per_caller, window = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Anything that would outlive the window was written before Redis' clock was set back.
if redis.call('PTTL', running) > tonumber(window) then redis.call('DEL', running) end
if tonumber(redis.call('HGET', running, caller) or 0) >= tonumber(limit_per_caller) then
    return math.max(redis.call('PTTL', running), 1)
end
redis.call('ZREMRANGEBYSCORE', unfinished, '-inf', now)
redis.call('ZREMRANGEBYSCORE', unfinished, now + window + 1, '+inf')
if redis.call('ZCARD', unfinished) >= tonumber(limit) then
    return math.max(redis.call('ZRANGE', unfinished, 0, 0, 'WITHSCORES')[2] - now, 1)
end

redis.call('HINCRBY', running, caller, 1)
if redis.call('PTTL', running) < 0 then redis.call('PEXPIRE', running, window) end
redis.call('ZADD', unfinished, now + window, operation)
redis.call('PEXPIRE', unfinished, window)
return 0
