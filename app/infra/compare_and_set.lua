-- Replaces a value if it is still the old one, and keeps its time to live. Returns 1 if it was replaced.
-- KEYS: the key. ARGV: the old value, the new value.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
