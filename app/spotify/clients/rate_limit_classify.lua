-- Decides which calls a 429 concerns.
-- KEYS: the scope that was rejected last, whether a canary was sent recently, whether this scope is independent.
-- ARGV: scope, for how long it is remembered (ms), minimum time between canaries (ms).
-- Returns 'all', 'one', or 'canary' (send one to find out).
if redis.call('EXISTS', KEYS[3]) == 0 then
  local last = redis.pcall('GET', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  if type(last) == 'string' and last ~= ARGV[1] then return 'all' end
end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[3]) then return 'canary' end
return 'one'
