-- Decides what a 429 is about.
-- KEYS: which scope was refused last, whether a canary read was made lately, whether this scope refuses by itself.
-- ARGV: scope, for how long that is remembered (ms), the least time between canary reads (ms).
-- Returns 'all', 'ask' (make a canary read), or 'one'.
if redis.call('EXISTS', KEYS[3]) == 0 then
  local last = redis.pcall('GET', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  if type(last) == 'string' and last ~= ARGV[1] then return 'all' end
end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[3]) then return 'ask' end
return 'one'
