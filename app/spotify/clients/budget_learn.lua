-- Learns a limit from the calls that were made before Spotify rejected all of the application's.
-- KEYS: the learned limit, all calls.
-- ARGV: window (s), share of the calls, minimum limit, growth and its period (ms), how long it is kept (s).
-- Returns the limit, or 0 if it was learned within the window.
local time = redis.call('TIME')
local second, now = tonumber(time[1]), time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(ARGV[1])

local sent = 0
for slot = 0, window do
  local at, calls = string.match(redis.call('HGET', KEYS[2], slot) or '', '^(%d+):(%d+)$')
  at = tonumber(at)
  if at and at >= second - window and at <= second then sent = sent + tonumber(calls) end
end
local limit = math.floor(sent * tonumber(ARGV[2]))

local learned = redis.call('HMGET', KEYS[1], 'limit', 'since')
local former, since = tonumber(learned[1]), tonumber(learned[2])
if former and since and since <= now then
  -- Simultaneous calls are rejected together, so learn only once. Few calls follow a wait, so do not halve twice.
  if now - since < window * 1000 then return 0 end
  local periods = math.min(math.floor((now - since) / tonumber(ARGV[5])), 1000)
  former = former * tonumber(ARGV[4]) ^ periods
  limit = math.min(math.max(limit, math.floor(former / 2)), math.floor(former))
end
limit = math.max(limit, tonumber(ARGV[3]))
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'limit', string.format('%d', limit), 'since', string.format('%.0f', now))
redis.call('EXPIRE', KEYS[1], ARGV[6])
return limit
