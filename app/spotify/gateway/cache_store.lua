-- Stores what a leader has fetched, unless the connection's entries were dropped in the meantime.
-- KEYS: entries, leaders, index (entries by expiry).
-- ARGV: read, caller, entry, TTL in ms, when the fetch started, grace for waiters in ms,
--       limits: entries, bytes, TTL in ms.
-- Returns 1 if it was stored.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local read, caller, entry = ARGV[1], ARGV[2], ARGV[3]
local ttl, started, grace = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_entries, max_bytes, max_ttl = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])

-- Returns how many bytes are left.
local function remove(other)
  local size = redis.call('HSTRLEN', KEYS[1], 'entry:' .. other)
  if size == 0 then
    redis.call('ZREM', KEYS[3], other)
    return tonumber(redis.call('HGET', KEYS[1], 'bytes')) or 0
  end
  redis.call('HDEL', KEYS[1], 'entry:' .. other, 'at:' .. other, 'until:' .. other, 'next:' .. other)
  redis.call('ZREM', KEYS[3], other)
  return redis.call('HINCRBY', KEYS[1], 'bytes', -size)
end

local function keep_for(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local lead = redis.call('HMGET', KEYS[1], 'leader:' .. read, 'waited:' .. read)
if lead[1] ~= caller then return 0 end
redis.call('HDEL', KEYS[1], 'leader:' .. read, 'waited:' .. read)
redis.call('ZREM', KEYS[2], read)

-- A page that polls keeps the key alive for hours, so remove expired entries here.
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 16)) do remove(other) end
-- Also remove entries written by a clock that was ahead, or they would crowd out newer ones.
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], now + max_ttl + 1, '+inf', 'LIMIT', 0, 16)) do remove(other) end
if ttl == 0 and not lead[2] then return 0 end
local bytes = remove(read)
while redis.call('ZCARD', KEYS[3]) >= max_entries or bytes + string.len(entry) > max_bytes do
  local first = redis.call('ZPOPMIN', KEYS[3])
  if not first[1] then
    -- Redis has evicted the index, so entries can no longer be removed one by one.
    redis.call('UNLINK', KEYS[1], KEYS[2])
    return 0
  end
  bytes = remove(first[1])
end
redis.call('HSET', KEYS[1], 'entry:' .. read, entry, 'at:' .. read, now,
           'until:' .. read, now + ttl, 'next:' .. read, started + ttl)
redis.call('HINCRBY', KEYS[1], 'bytes', string.len(entry))
redis.call('ZADD', KEYS[3], now + math.max(ttl, grace), read)
keep_for(KEYS[1], math.max(ttl, grace))
keep_for(KEYS[3], math.max(ttl, grace) + 60000)
return 1
