-- Record that an operation has ended.
--
-- KEYS: as in throttle_reserve.lua. ARGV: the operation, its caller, and '1' if it succeeded.
local unfinished, running = KEYS[1], KEYS[2]
local operation, caller, succeeded = unpack(ARGV)

if succeeded == '1' then redis.call('ZREM', unfinished, operation) end
local left = tonumber(redis.call('HGET', running, caller) or 0) - 1
if left > 0 then redis.call('HSET', running, caller, left) else redis.call('HDEL', running, caller) end
