-- Counts a call, if the budget has room for it. The room is shared by max-min fairness: people who request less
-- than an equal share get all of it, and the others share the rest equally.
-- KEYS: the learned limit, all calls, the caller's calls, how many people request how much.
-- ARGV: window (s), a fixed limit ('' to use the learned one, 'none' to count in any case), share of the limit
--       that polls may use ('' if this is no poll), whether this request has waited ('1' or ''), share of the
--       limit that is left for unexpected calls, growth and its period (ms) of the learned limit.
-- Returns 0, or after how many milliseconds to try again.
local time = redis.call('TIME')
local second, now = tonumber(time[1]), time[1] * 1000 + math.floor(time[2] / 1000)
local window, fixed, poll_share, has_waited = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local slots = window + 1

local function read(key)
  local reply, hash = redis.call('HGETALL', key), {}
  for index = 1, #reply, 2 do hash[reply[index]] = reply[index + 1] end
  return hash
end

-- Calls, polls ('p'), the calls of each class of people ('s', 'm', 'l'), and requests ('r') are counted by the second,
-- each in as many fields as the window has.
local function parse(value)
  local at, count = string.match(value or '', '^(%d+):(%d+)$')
  return tonumber(at), tonumber(count)
end

local function counted(hash, kind)
  local series = {sum = 0}
  for slot = 0, window do
    local at, count = parse(hash[kind .. slot])
    if at and at > second - slots and at <= second then
      series[at], series.sum = count, series.sum + count
    end
  end
  return series
end

local function add(key, kind)
  local slot = kind .. second % slots
  local at, count = parse(redis.call('HGET', key, slot))
  redis.call('HSET', key, slot, string.format('%d:%d', second, at == second and count + 1 or 1))
end

local function difference(series, part)
  local others = {sum = series.sum - part.sum}
  for at = second - window, second do others[at] = (series[at] or 0) - (part[at] or 0) end
  return others
end

-- Returns after how many milliseconds fewer than `limit` calls will be left in the window.
local function wait_for(series, limit)
  local excess = series.sum - limit + 1
  if excess <= 0 then return 0 end
  for at = second - window, second do
    excess = excess - (series[at] or 0)
    if excess <= 0 then return (at + slots) * 1000 - now end
  end
  return window * 1000
end

local limit = tonumber(fixed)
if fixed == '' then
  local learned = redis.call('HMGET', KEYS[1], 'limit', 'since')
  limit = tonumber(learned[1])
  local since = tonumber(learned[2]) or now
  if limit and since > now then
    -- It was learned while Redis' clock was ahead, and would not grow until then.
    since = now
    redis.call('HSET', KEYS[1], 'since', string.format('%.0f', now))
  end
  local periods = math.min(math.floor((now - since) / tonumber(ARGV[7])), 1000)
  if limit and periods > 0 then limit = math.ceil(limit * tonumber(ARGV[6]) ^ periods) end
end
if not limit then
  add(KEYS[2], '')
  redis.call('EXPIRE', KEYS[2], slots)
  return 0
end

-- A person's demand is the most requests that they have made in any window that ended in this period, which is as
-- long as a window, or in the one before. For each demand, KEYS[4] has the number of people: of this period alone
-- ('n'), and of both ('b').
local people = read(KEYS[4])
local period = tonumber(people.period) or 0
if period > second or second - period >= window then
  local next = {period = second, previous = 0}
  if period <= second and second - period < 2 * window then
    next.previous = period
    for field, number in pairs(people) do
      local demand = string.match(field, '^n(%d+)$')
      if demand then next['b' .. demand] = number end
    end
  end
  redis.call('DEL', KEYS[4])
  for field, value in pairs(next) do redis.call('HSET', KEYS[4], field, value) end
  people, period = next, second
end

local function move_person(kind, from, to)
  if from > 0 and redis.call('HINCRBY', KEYS[4], kind .. from, -1) <= 0 then
    redis.call('HDEL', KEYS[4], kind .. from)
  end
  if from > 0 then people[kind .. from] = (tonumber(people[kind .. from]) or 0) - 1 end
  people[kind .. to] = redis.call('HINCRBY', KEYS[4], kind .. to, 1)
end

local mine = read(KEYS[3])
local my_calls, my_polls, my_requests = counted(mine, ''), counted(mine, 'p'), counted(mine, 'r')
local demand, before = 0, 0
if tonumber(mine.period) == period then
  demand, before = tonumber(mine.demand) or 0, tonumber(mine.before) or 0
elseif mine.period and mine.period == tostring(people.previous) then
  before = tonumber(mine.demand) or 0
end
if not has_waited then add(KEYS[3], 'r') end

-- Large numbers are rounded up to 6 significant bits, so that there are only a few hundred different ones.
local function raise_demand(requests)
  local step = 1
  while requests / step > 64 do step = step * 2 end
  requests = math.min(math.ceil(requests / step) * step, limit)
  if requests > demand then
    move_person('n', demand, requests)
    if requests > before then move_person('b', math.max(demand, before), requests) end
    demand = requests
  end
  redis.call('HSET', KEYS[3], 'period', period, 'demand', demand, 'before', before)
end

local requests = math.max(my_requests.sum + (has_waited and 0 or 1), 1)
raise_demand(requests)
redis.call('EXPIRE', KEYS[3], 2 * slots)
redis.call('EXPIRE', KEYS[4], 2 * slots)
local largest = math.max(demand, before)

local demands, persons = {}, 0
for field, value in pairs(people) do
  local size, number = tonumber(string.match(field, '^b(%d+)$')), tonumber(value)
  if size and number > 0 then
    demands[#demands + 1] = {size, number}
    persons = persons + number
  end
end
table.sort(demands, function(one, other) return one[1] < other[1] end)

-- Returns the fair share of `room`, and what is left for the people whose demand is larger. If there are none, the
-- share is infinite.
local function share_out(room)
  local left = persons
  for _, group in ipairs(demands) do
    if group[1] * left > room then return room / left, room end
    room, left = room - group[1] * group[2], left - group[2]
  end
  return math.huge, room
end

-- A person is small ('s') if they request at most half of an equal share, limited ('l') if they request more than
-- their fair share, or else in between ('m'). What smaller people request is reserved for them. If there are several
-- people, a little more is left to small ones, for calls that they have not requested before.
local largest_small = math.max(1, limit / persons / 2)
local reserve = persons > 1 and math.floor(limit * tonumber(ARGV[5])) or 0
local share, rest = share_out(limit - reserve)
for _, group in ipairs(demands) do
  if group[1] <= largest_small then reserve = reserve + group[1] * group[2] end
end
local class = largest <= largest_small and 's' or largest > share and 'l' or 'm'

-- If this person was in another class, their calls change over to the new one.
local all = read(KEYS[2])
local calls = counted(all, '')
local of_class = {s = counted(all, 's'), m = counted(all, 'm'), l = counted(all, 'l')}
if mine.class ~= class then
  for at = second - window, second do
    for name, sign in pairs({[class] = 1, [mine.class or ''] = -1}) do
      local series = of_class[name]
      if series and my_calls[at] then
        local count = math.max(0, (series[at] or 0) + sign * my_calls[at])
        series.sum = series.sum + count - (series[at] or 0)
        series[at] = count
        redis.call('HSET', KEYS[2], name .. at % slots, string.format('%d:%d', at, count))
      end
    end
  end
  redis.call('HSET', KEYS[3], 'class', class)
end

local wait, wait_for_share = wait_for(calls, limit), 0
if class == 'l' then wait_for_share = wait_for(of_class.l, rest) end
if class == 'm' then wait_for_share = wait_for(difference(calls, of_class.s), limit - reserve) end
if poll_share then
  local poll_limit = math.max(1, math.floor(limit * poll_share))
  local share_of_polls = share_out(poll_limit)
  wait = math.max(wait, wait_for(counted(all, 'p'), poll_limit))
  if largest > share_of_polls then
    wait_for_share = math.max(wait_for_share, wait_for(my_calls, math.max(1, math.floor(share_of_polls))))
  end
elseif class == 'l' then
  -- Whatever this person has polled, they can make another call.
  local wait_for_own = math.min(wait_for(my_calls, math.ceil(share)), wait_for(difference(my_calls, my_polls), 1))
  wait_for_share = math.max(wait_for_share, wait_for_own)
end
-- When the period ends, others may have stopped.
wait = math.max(wait, math.min(wait_for_share, (period + window) * 1000 - now))
if wait > 0 then
  -- People who wait make fewer requests than they would like to.
  if class ~= 'l' then raise_demand(2 * requests) end
  return math.min(wait, window * 1000)
end

for _, key in ipairs({KEYS[2], KEYS[3]}) do
  add(key, '')
  if poll_share then add(key, 'p') end
end
add(KEYS[2], class)
redis.call('EXPIRE', KEYS[2], slots)
return 0
