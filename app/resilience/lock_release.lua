-- Deletes the lock if its holder still has it. After the lease, another caller may have it.
-- KEYS: the lock. ARGV: the holder's token.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
