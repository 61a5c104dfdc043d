-- Looks a read up, and decides who fetches it if it has to be fetched.
-- KEYS: entries, leaders.
-- ARGV: read, caller, since when the caller has waited ('' if it has not), lease and longest life in ms.
-- Returns {'hit', entry, age}, {'lead', now, entry, age} (the entry is still good), {'lead', now} or {'wait', now}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local read, caller, since = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, longest = tonumber(ARGV[4]), tonumber(ARGV[5])

local function keep_for(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local found = redis.call('HMGET', KEYS[1], 'entry:' .. read, 'at:' .. read, 'until:' .. read,
                         'next:' .. read, 'leader:' .. read)
local entry, at, good_until, next_from = found[1], tonumber(found[2]), tonumber(found[3]), tonumber(found[4])
-- A time that is further ahead than any that is ever written was written by a clock that was ahead.
if not (at and good_until and next_from) or at > now or good_until > at + longest then entry = false end
local awaited = entry and since and at >= math.min(since, now)
local good = entry and (awaited or good_until > now)

local leads_until = found[5] and tonumber(redis.call('ZSCORE', KEYS[2], read) or 0)
local led = leads_until and leads_until > now and leads_until <= now + lease
if good and (awaited or led or next_from > now) then return {'hit', entry, now - at} end
if led then
  redis.call('HSET', KEYS[1], 'waited:' .. read, '1')
  return {'wait', now}
end

-- Forget a few leaders that have died.
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 16)) do
  if other ~= read then redis.call('HDEL', KEYS[1], 'leader:' .. other, 'waited:' .. other) end
  redis.call('ZREM', KEYS[2], other)
end
redis.call('HSET', KEYS[1], 'leader:' .. read, caller)
redis.call('ZADD', KEYS[2], now + lease, read)
keep_for(KEYS[1], 2 * lease)
keep_for(KEYS[2], 2 * lease)
if good then return {'lead', now, entry, now - at} end
return {'lead', now}
