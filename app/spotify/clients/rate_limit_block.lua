-- Starts a wait, unless a longer one is in progress, which an older 429 must not shorten.
-- KEYS: the wait. ARGV: milliseconds.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[1]) end
