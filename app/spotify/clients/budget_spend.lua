-- Counts a call, if the budget has room for it.
-- KEYS: the learned limit, all calls, the caller's calls.
-- ARGV: window (s), a fixed limit ('' to use the learned one, 'none' to count in any case), share of the limit that may be used, caller,
--       growth and its period (ms) of the learned limit.
-- Returns 0, or after how many milliseconds to try again.
local time = redis.call('TIME')
local second, now = tonumber(time[1]), time[1] * 1000 + math.floor(time[2] / 1000)
local window, share, caller = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4]
local slots = window + 1

-- Calls are counted by the second, in as many fields as the window has. Returns the sum and the oldest second.
local function count(key)
  local sum, oldest = 0, second
  for slot = 0, slots - 1 do
    local at, calls = string.match(redis.call('HGET', key, slot) or '', '^(%d+):(%d+)$')
    at = tonumber(at)
    if at and at > second - slots and at <= second then
      sum = sum + tonumber(calls)
      if at < oldest then oldest = at end
    end
  end
  return sum, oldest
end

local function add(key)
  local slot = second % slots
  local at, calls = string.match(redis.call('HGET', key, slot) or '', '^(%d+):(%d+)$')
  local sum = tonumber(at) == second and tonumber(calls) or 0
  redis.call('HSET', key, slot, string.format('%d:%d', second, sum + 1))
  redis.call('EXPIRE', key, slots)
end

-- The last caller, and when another one was here last.
local seen = redis.call('HMGET', KEYS[2], 'last', 'last_at', 'other_at')
local other_at = tonumber(seen[3])
if seen[1] and seen[1] ~= caller then other_at = tonumber(seen[2]) end
redis.call('HSET', KEYS[2], 'last', caller, 'last_at', now, 'other_at', other_at or 0)
redis.call('EXPIRE', KEYS[2], slots)
local others_until = other_at and other_at <= now and other_at + window * 1000 or 0

local limit = tonumber(ARGV[2])
if ARGV[2] == '' then
  local learned = redis.call('HMGET', KEYS[1], 'limit', 'since')
  limit = tonumber(learned[1])
  local since = tonumber(learned[2]) or now
  if limit and since > now then
    -- It was learned while Redis' clock was ahead, and would not grow until then.
    since = now
    redis.call('HSET', KEYS[1], 'since', string.format('%.0f', now))
  end
  local periods = math.min(math.floor((now - since) / tonumber(ARGV[6])), 1000)
  if limit and periods > 0 then limit = math.ceil(limit * tonumber(ARGV[5]) ^ periods) end
end

if limit then
  local wait, oldest, calls = 0, nil, nil
  calls, oldest = count(KEYS[2])
  if calls >= math.max(1, math.floor(limit * share)) then wait = (oldest + slots) * 1000 - now end
  if others_until > now then
    calls, oldest = count(KEYS[3])
    if calls >= math.max(1, math.floor(limit / 2 * share)) then
      -- Until there is room in the caller's half, or no other caller is left.
      wait = math.max(wait, math.min((oldest + slots) * 1000, others_until) - now)
    end
  end
  if wait > 0 then return math.min(wait, window * 1000) end
end
add(KEYS[2])
add(KEYS[3])
return 0
