-- Returns 1 if there is a learned limit, or else 0, and then how many milliseconds remain of each wait. If there is
-- neither a limit nor a wait, it returns only 0, which most calls get, and which is faster to read.
-- KEYS: the learned limit, and the waits. The value of each wait is its length when it started.
-- ARGV: the longest wait that is ever stored.
local found = {redis.call('EXISTS', KEYS[1])}
local any = found[1] == 1
for number = 2, #KEYS do
  local key = KEYS[number]
  local value = redis.pcall('GET', key)
  local length = type(value) == 'string' and tonumber(value) or 0
  length = math.max(0, math.min(length, tonumber(ARGV[1])))
  local remaining = redis.call('PTTL', key)
  if remaining > length then
    -- Redis' clock was set back, or something else has set the key. Let it end after its full length.
    remaining = length
    redis.call('PEXPIRE', key, math.floor(length))
  end
  found[number] = math.max(0, math.floor(remaining))
  any = any or found[number] > 0
end
return any and found or 0
