-- Takes the lock if it is free, or if it is held for longer than any lease of ours: then it is not one of
-- ours, or was set before Redis' clock was set back. Returns 1 if it did.
-- KEYS: the lock. ARGV: the holder's token, the lease in milliseconds.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
