-- Send WRK_BODY in POST requests if it is set.
if (os.getenv("WRK_BODY") or "") ~= "" then
  wrk.method, wrk.body = "POST", os.getenv("WRK_BODY")
end

-- With WRK_PAUSE_MS, each connection pauses before each request, on average for so long.
local pause = tonumber(os.getenv("WRK_PAUSE_MS") or "")
if pause then
  delay = function() return math.random() * 2 * pause end
end

-- Print the results of wrk as JSON. Latencies are in microseconds.
done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f, "max": %f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
