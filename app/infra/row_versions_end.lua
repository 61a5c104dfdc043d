-- Removes a writer's token from a version. After the last one, the label is replaced, even if the token is
-- gone: a marker that was lost or has expired may have let readers label what they read before the COMMIT.
-- KEYS: the version. ARGV: the token, a new label, the label's TTL in milliseconds.
local version = redis.call('GET', KEYS[1])
if not version then return end
local marker = '!' .. ARGV[1]
local first, last = string.find(version, marker, 1, true)
if first then version = string.sub(version, 1, first - 1) .. string.sub(version, last + 1) end
if string.find(version, '!', 1, true) then
    redis.call('SET', KEYS[1], version, 'KEEPTTL')
elseif version == '' then
    redis.call('DEL', KEYS[1]) -- no process has read the row since the label expired
else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
