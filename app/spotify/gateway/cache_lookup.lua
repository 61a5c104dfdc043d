-- Looks up a read, and makes the caller its leader if it asks for that and there is no other leader.
-- KEYS: entries, leaders.
-- ARGV: read, caller, when the caller's first lookup was ('' for the first one), lease in ms, maximum TTL in ms,
--       '1' to lead.
-- Returns {'hit', entry, age}, {'in_progress', now} (another caller is fetching it), or
--         {'miss' or 'leading', now[, entry, age]} (no other caller is fetching it; an entry that is fresh, but due to
--         be replaced).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local read, caller, since = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, max_ttl = tonumber(ARGV[4]), tonumber(ARGV[5])

local function keep_for(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local found = redis.call('HMGET', KEYS[1], 'entry:' .. read, 'at:' .. read, 'until:' .. read,
                         'next:' .. read, 'leader:' .. read)
local entry, at, fresh_until, next_from = found[1], tonumber(found[2]), tonumber(found[3]), tonumber(found[4])
-- A time further ahead than this script ever writes comes from a clock that was ahead.
if not (at and fresh_until and next_from) or at > now or fresh_until > at + max_ttl then entry = false end
local arrived_since = entry and since and at >= math.min(since, now)
local fresh = entry and (arrived_since or fresh_until > now)

local leads_until = found[5] and tonumber(redis.call('ZSCORE', KEYS[2], read) or 0)
local led = leads_until and leads_until > now and leads_until <= now + lease
if fresh and (arrived_since or led or next_from > now) then return {'hit', entry, now - at} end
if led then
  redis.call('HSET', KEYS[1], 'waited:' .. read, '1')
  return {'in_progress', now}
end
local function found_as(state)
  if fresh then return {state, now, entry, now - at} end
  return {state, now}
end
if ARGV[6] ~= '1' then return found_as('miss') end

-- Remove a few leaders that have died.
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 16)) do
  if other ~= read then redis.call('HDEL', KEYS[1], 'leader:' .. other, 'waited:' .. other) end
  redis.call('ZREM', KEYS[2], other)
end
redis.call('HSET', KEYS[1], 'leader:' .. read, caller)
redis.call('ZADD', KEYS[2], now + lease, read)
keep_for(KEYS[1], 2 * lease)
keep_for(KEYS[2], 2 * lease)
return found_as('leading')
