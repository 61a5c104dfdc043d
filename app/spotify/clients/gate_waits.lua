-- Reads how many milliseconds are left of waits.
-- KEYS: the waits. Each holds how long it was when it began.
-- ARGV: the longest wait that is ever written.
local waits = {}
for number, key in ipairs(KEYS) do
  local began = redis.pcall('GET', key)
  local most = type(began) == 'string' and tonumber(began) or 0
  most = math.max(0, math.min(most, tonumber(ARGV[1])))
  local left = redis.call('PTTL', key)
  if left > most then
    -- Redis' clock was set back, or somebody has written it. It is over when it would have been at most.
    left = most
    redis.call('PEXPIRE', key, math.floor(most))
  end
  waits[number] = math.max(0, math.floor(left))
end
return waits
