-- Takes the lock if it is free, or if it would be held for longer than our lease: then something else set the
-- key, or Redis' clock was set back since. Returns 1 if the lock was taken.
-- KEYS: the lock. ARGV: the holder's token, the lease in milliseconds.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
