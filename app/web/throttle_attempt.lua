-- Count a password attempt as a failure and return 0,
-- or return the milliseconds to wait, without counting it.
--
-- KEYS: the counters of the account at this address, of the account, and of the address.
-- ARGV: see Throttle.attempt; durations are in seconds.
local pair, account, address = KEYS[1], KEYS[2], KEYS[3]
local free, account_limit, first_wait, max_wait, forget_after, address_limit, address_window = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A counter that would outlive its window was written before Redis' clock was set back.
if redis.call('PTTL', address) > address_window * 1000 then redis.call('DEL', address) end
if tonumber(redis.call('GET', address) or 0) >= tonumber(address_limit) then
    return math.max(redis.call('PTTL', address), 1)
end
local wait = tonumber(redis.call('HGET', pair, 'until') or 0) - now
if wait > 0 and wait <= max_wait * 1000 then return wait end

local failures = redis.call('HINCRBY', pair, 'failures', 1)
redis.call('EXPIRE', pair, forget_after)
if redis.call('INCR', account) > tonumber(account_limit) then free = 1 end
redis.call('EXPIRE', account, forget_after)
if redis.call('INCR', address) == 1 then redis.call('EXPIRE', address, address_window) end

if failures >= tonumber(free) then
    local seconds = math.min(first_wait * 2 ^ math.min(failures - free, 20), max_wait)
    redis.call('HSET', pair, 'until', string.format('%.0f', now + seconds * 1000))
end
return 0
