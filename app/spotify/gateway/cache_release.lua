-- Ends a leader's lease without a result.
-- KEYS: entries, leaders.
-- ARGV: read, caller, lease in ms.
local lead = redis.call('HMGET', KEYS[1], 'leader:' .. ARGV[1], 'waited:' .. ARGV[1])
if lead[1] ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'leader:' .. ARGV[1])
if lead[2] then
  -- The next leader must know that others wait. If none comes, the flag expires like the lease of a dead leader.
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1
