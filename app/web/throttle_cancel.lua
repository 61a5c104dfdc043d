-- Undo throttle_attempt.lua. A stored wait was set by the attempt being undone: none is counted during a wait.
if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HINCRBY', KEYS[1], 'failures', -1)
    redis.call('HDEL', KEYS[1], 'until')
end
for _, key in ipairs({KEYS[2], KEYS[3]}) do
    if redis.call('EXISTS', key) == 1 then redis.call('DECR', key) end
end
