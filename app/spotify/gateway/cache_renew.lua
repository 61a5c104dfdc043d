-- Renews the lease of a leader that still leads.
-- KEYS: entries, leaders.
-- ARGV: read, caller, lease in ms.
if redis.call('HGET', KEYS[1], 'leader:' .. ARGV[1]) ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < 2 * ARGV[3] then redis.call('PEXPIRE', key, 2 * ARGV[3]) end
end
return 1
