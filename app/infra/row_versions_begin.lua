-- Marks a version as changing: adds a writer's token. The label, if there is one, stays in front of it.
-- KEYS: the version. ARGV: the token, the milliseconds after which a writer counts as dead.
redis.call('SET', KEYS[1], (redis.call('GET', KEYS[1]) or '') .. '!' .. ARGV[1], 'PX', ARGV[2])
