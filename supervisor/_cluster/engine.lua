-- All that nodes share, and the only script that writes it. A call is one node's batch of operations, done together
-- or not at all:
--
--   ARGV: prefix, node, batch, lease in ms, then for each operation its name, the number of its arguments, and these
--
-- The node's own lease is renewed by every batch. A node whose lease is over is answered 'fenced', and nothing of its
-- batch is done, unless the batch begins with 'enter'. A batch that comes again, because its answer was lost, is
-- answered again and not done again; one without a number only reads. What fails is answered with 'error' and why. All times are this server's.
--
--   nodes              each node, by the time at which its lease ends
--   all                each claim, by its order of admission: "connection user", a connection's id begins with "node-"
--   u:USER             the claims of one user, in that order
--   users              each user, by the number of their claims
--   s:USER             claim -> the attempt that it came by, and its session
--   leaving, l:USER    who has given up the claim and still holds the seat
--   n:NODE             the claims and seats of one node, so that they can be taken back when it is lost
--   w:CLAIM            the node that waits for this seat
--   h:GROUP            what was told to one audience lately: a stream whose ids are the numbers
--   runs:USER          the runs of one user, by their ids, which begin with "node-"
--   top                the greatest number that was ever given, so that none is given twice
--   p:ROOM:NODE        the members of a room at one node; a:ROOM the nodes that have any, r:NODE the rooms of one node
--   b:NODE             the last batch, and how it was answered
--   epoch              the epoch, and the run of the server that it belongs to

local prefix, node, batch, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local unpack = unpack or table.unpack

local function key(kind, name) return prefix .. kind .. (name and ':' .. name or '') end

local NODES, ALL, USERS, LEAVING = key('nodes'), key('all'), key('users'), key('leaving')
local TOP, EPOCH, EVERYBODY = key('top'), key('epoch'), key('everybody')
local BOUND = 500 -- connections of a lost node that are taken back in one call

local function node_of(claim) return string.match(claim, '^[^-]*') end
local function user_of(claim) return string.match(claim, '^%S+ (.*)$') end
local function is_alive(name)
  local ends = redis.call('ZSCORE', NODES, name)
  return ends and tonumber(ends) > now
end
local function send(to, ...) redis.call('PUBLISH', key('node', to), table.concat({...}, ' ')) end

-- Seats ------------------------------------------------------------------------------------------------------------

local function leave(claim)
  if redis.call('ZREM', ALL, claim) == 0 then return end
  local user = user_of(claim)
  redis.call('ZREM', key('u', user), claim)
  redis.call('HDEL', key('s', user), claim)
  if tonumber(redis.call('ZINCRBY', USERS, -1, user)) <= 0 then redis.call('ZREM', USERS, user) end
  redis.call('ZADD', LEAVING, now, claim)
  redis.call('SADD', key('l', user), claim)
end

-- The seat is free; its node may not know.
local function free(claim)
  leave(claim)
  redis.call('ZREM', LEAVING, claim)
  redis.call('SREM', key('l', user_of(claim)), claim)
end

local function give_back(claim)
  free(claim)
  redis.call('SREM', key('n', node_of(claim)), claim)
  local waiting = redis.call('GET', key('w', claim))
  if waiting then
    redis.call('DEL', key('w', claim))
    send(waiting, 'free', claim)
  end
end

local function evict(claim, why)
  leave(claim)
  send(node_of(claim), 'evict', why, claim)
end

-- What a lost node has left of one user is not held against them.
local function forget_lost(user)
  for _, claims in ipairs({redis.call('ZRANGE', key('u', user), 0, -1), redis.call('SMEMBERS', key('l', user))}) do
    for _, claim in ipairs(claims) do
      if not is_alive(node_of(claim)) then give_back(claim) end
    end
  end
end

-- Those of this session leave; false if one of them has come for a later attempt.
local function take_over(user, session, attempt)
  local sessions, same = redis.call('HGETALL', key('s', user)), {}
  for i = 1, #sessions, 2 do
    local tried, name = string.match(sessions[i + 1], '^(%d+) (.*)$')
    if name == session then
      if tonumber(tried) > attempt then return false end
      same[#same + 1] = sessions[i]
    end
  end
  for _, claim in ipairs(same) do evict(claim, 'session') end
  return true
end

-- One of those who leave whose seat nobody waits for yet: the newcomer does, from now on.
local function await_one(leaving)
  for _, claim in ipairs(leaving) do
    if redis.call('SET', key('w', claim), node, 'NX', 'PX', 10 * lease) then return {claim} end
  end
  return {}
end

local ops = {}

-- Come in: answers 'in', and the claim whose seat it waits for, if it does; or 'full', which limit, and how
-- many there are; or 'late', if its session has come by a later attempt.
function ops.claim(user, id, session, takes_over, per_user, total, policy_user, policy_total)
  local claim, order = id .. ' ' .. user, nil
  per_user, total = tonumber(per_user), tonumber(total)
  if redis.call('ZSCORE', ALL, claim) then return {'in'} end
  forget_lost(user)
  if takes_over ~= '0' and not take_over(user, session, tonumber(takes_over)) then return {'late'} end
  local mine, everybody = redis.call('ZCARD', key('u', user)), redis.call('ZCARD', ALL)
  if mine >= per_user then
    if policy_user == 'refuse' then return {'full', 'per user', mine} end
    evict(redis.call('ZRANGE', key('u', user), 0, 0)[1], 'user')
  elseif everybody >= total then
    if policy_total == 'refuse' then return {'full', 'total', everybody} end
    local from = ALL
    if policy_total == 'evict-greediest' then from = key('u', redis.call('ZREVRANGE', USERS, 0, 0)[1]) end
    evict(redis.call('ZRANGE', from, 0, 0)[1], 'total')
  end
  order = redis.call('INCR', key('order'))
  redis.call('ZADD', ALL, order, claim)
  redis.call('ZADD', key('u', user), order, claim)
  redis.call('ZINCRBY', USERS, 1, user)
  redis.call('SADD', key('n', node), claim)
  if session ~= '' then redis.call('HSET', key('s', user), claim, takes_over .. ' ' .. session) end
  local leaving, waits = redis.call('SMEMBERS', key('l', user)), {}
  if redis.call('ZCARD', key('u', user)) + #leaving > per_user then waits = await_one(leaving) end
  if #waits == 0 and redis.call('ZCARD', ALL) + redis.call('ZCARD', LEAVING) > total then
    waits = await_one(redis.call('ZRANGE', LEAVING, 0, BOUND))
  end
  return {'in', unpack(waits)}
end

function ops.leave(claim) leave(claim) end

function ops.give_back(...)
  for _, claim in ipairs({...}) do give_back(claim) end
end

-- Whoever is slow to leave, and has not come in again meanwhile, loses the seat; the claim stays among those of its node,
-- which has yet to give it back.
function ops.rob(claim)
  redis.call('DEL', key('w', claim))
  if redis.call('ZSCORE', LEAVING, claim) then free(claim) end
end

-- Messages ---------------------------------------------------------------------------------------------------------

local function number_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- The last number that was given, also if its message is not kept any more; nil if nobody remembers one.
local function last_of(stream)
  if redis.call('EXISTS', stream) == 0 then return nil end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return number_of({info[i + 1]}) end
  end
end

-- Begin to remember: with a number that was never given, to anybody.
local function begin(stream)
  local number = redis.call('INCR', TOP)
  redis.call('XDEL', stream, redis.call('XADD', stream, number .. '-0', '', ''))
  return number
end

-- Keep a message under its number, within these bounds, and tell it to all nodes that attend. `total` counts the bytes
-- that there were so far.
local function keep(group, number, exclude, messages, bytes, age, text)
  local stream = key('h', group)
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  local total = (newest and tonumber(newest[2][4]) or 0) + #text
  redis.call('XADD', stream, 'MAXLEN', messages, number .. '-0', 'text', text, 'total', total, 'at', now)
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  while oldest and total - tonumber(oldest[2][4]) + #oldest[2][2] > tonumber(bytes) do
    redis.call('XDEL', stream, oldest[1])
    oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  end
  redis.call('PEXPIRE', stream, age)
  redis.call('PUBLISH', key('c', group), 'said ' .. number .. ' ' .. (exclude == '' and '-' or exclude) .. ' ' .. text)
end

-- Number a message, keep it, and tell it; unless the connection that it comes from has left, or was taken over, meanwhile:
-- whoever comes back and does not find it may say it again.
function ops.tell(group, exclude, by, messages, bytes, age, text)
  if by ~= '' and not redis.call('ZSCORE', ALL, by) then return 'gone' end
  local stream = key('h', group)
  local number = (last_of(stream) or begin(stream)) + 1
  if number > tonumber(redis.call('GET', TOP) or 0) then redis.call('SET', TOP, number) end
  keep(group, number, exclude, messages, bytes, age, text)
  return number
end

-- Whoever attends keeps the numbers of an audience in which nothing is told from being forgotten.
function ops.touch(age, ...)
  for _, group in ipairs({...}) do redis.call('PEXPIRE', key('h', group), age) end
end

-- To the other nodes that attend, unnumbered; kept by nobody.
function ops.publish(group, kind, text)
  redis.call('PUBLISH', key('c', group), kind .. ' ' .. node .. ' ' .. text)
end

-- To every node, or to one.
function ops.order(to, text)
  redis.call('PUBLISH', to == '' and EVERYBODY or key('node', to), 'order ' .. node .. ' ' .. text)
end

-- Runs: their node gives their events numbers; the others find them by their user -------------------------------

function ops.emit(group, number, messages, bytes, age, text) keep(group, number, '', messages, bytes, age, text) end

function ops.run(user, run, card, age)
  redis.call('HSET', key('runs', user), run, card)
  redis.call('PEXPIRE', key('runs', user), age)
end

-- To the node of a run: that somebody of its user follows it here, or wants it to end.
function ops.follow(run, user) send(node_of(run), 'hold', node, user) end

function ops.cancel(run) send(node_of(run), 'cancel', run) end

-- Presence ---------------------------------------------------------------------------------------------------------

local function tell_presence(room, at, kind, cards)
  redis.call('PUBLISH', key('c', 'room:' .. room), kind .. ' ' .. at .. ' [' .. table.concat(cards, ',') .. ']')
end

local function nobody_at(room, at)
  redis.call('SREM', key('a', room), at)
  redis.call('SREM', key('r', at), room)
end

-- These connections have come to a room, or changed there: pairs of an id and a card, which is JSON.
function ops.come(room, ...)
  local given, cards = {...}, {}
  for i = 1, #given, 2 do
    redis.call('HSET', key('p', room .. ':' .. node), given[i], given[i + 1])
    cards[#cards + 1] = given[i + 1]
  end
  redis.call('SADD', key('a', room), node)
  redis.call('SADD', key('r', node), room)
  tell_presence(room, node, 'came', cards)
end

function ops.go(room, ...)
  local members, cards = key('p', room .. ':' .. node), {}
  for _, id in ipairs({...}) do
    cards[#cards + 1] = redis.call('HGET', members, id) or nil
    redis.call('HDEL', members, id)
  end
  if redis.call('EXISTS', members) == 0 then nobody_at(room, node) end
  if #cards > 0 then tell_presence(room, node, 'went', cards) end
end

-- Nodes ------------------------------------------------------------------------------------------------------------

-- Take back what a node had; true if nothing is left of it.
local function clear(name, bound)
  for _, claim in ipairs(redis.call('SPOP', key('n', name), bound)) do give_back(claim) end
  if redis.call('EXISTS', key('n', name)) == 1 then return false end
  for _, room in ipairs(redis.call('SMEMBERS', key('r', name))) do
    local members = key('p', room .. ':' .. name)
    local cards = redis.call('HVALS', members)
    redis.call('DEL', members)
    nobody_at(room, name)
    if #cards > 0 then tell_presence(room, name, 'went', cards) end
  end
  redis.call('DEL', key('b', name))
  redis.call('ZREM', NODES, name)
  return true
end

local function reap()
  local lost = redis.call('ZRANGEBYSCORE', NODES, '-inf', now, 'LIMIT', 0, 1)[1]
  if lost and clear(lost, BOUND) then redis.call('PUBLISH', EVERYBODY, 'lost ' .. lost .. ' ') end
end

-- Be a node, with nothing; answers the epoch, which is another after each start of the server.
function ops.enter(run, epoch)
  clear(node, 1000000)
  local before = redis.call('HMGET', EPOCH, 'epoch', 'run')
  if before[2] ~= run then
    redis.call('HSET', EPOCH, 'epoch', epoch, 'run', run)
    before[1] = epoch
  end
  redis.call('ZADD', NODES, now + lease, node)
  return before[1]
end

function ops.exit()
  clear(node, 1000000)
  redis.call('PUBLISH', EVERYBODY, 'left ' .. node .. ' ')
end

-- Reading ----------------------------------------------------------------------------------------------------------

-- Attend: the last number of an audience; then of each message after `after` that is kept its number, its age in ms, and
-- its text.
function ops.attend(group, after, age)
  local stream = key('h', group)
  local found = {last_of(stream) or begin(stream)}
  redis.call('PEXPIRE', stream, age)
  for _, entry in ipairs(redis.call('XRANGE', stream, (tonumber(after) + 1) .. '-0', '+')) do
    found[#found + 1] = number_of(entry)
    found[#found + 1] = now - tonumber(entry[2][6])
    found[#found + 1] = entry[2][2]
  end
  return found
end

-- The claims of this node that others have taken, in case that it was not heard.
function ops.evicted()
  local found = {}
  for _, claim in ipairs(redis.call('SMEMBERS', key('n', node))) do
    if not redis.call('ZSCORE', ALL, claim) then found[#found + 1] = claim end
  end
  return found
end

-- The runs of a user at nodes that live.
function ops.runs(user)
  local found, runs = {}, redis.call('HGETALL', key('runs', user))
  for i = 1, #runs, 2 do
    if is_alive(node_of(runs[i])) then found[#found + 1] = runs[i + 1] end
  end
  return found
end

-- Who is in a room at the other nodes: pairs of a node and an array of cards.
function ops.present(room)
  local found = {}
  for _, other in ipairs(redis.call('SMEMBERS', key('a', room))) do
    if other ~= node then
      found[#found + 1] = other
      found[#found + 1] = '[' .. table.concat(redis.call('HVALS', key('p', room .. ':' .. other)), ',') .. ']'
    end
  end
  return found
end

-- How it stands: claims, users, who is leaving, and the nodes.
function ops.look()
  return {
    redis.call('ZCARD', ALL), redis.call('ZCARD', USERS), redis.call('ZCARD', LEAVING),
    unpack(redis.call('ZRANGEBYSCORE', NODES, now, '+inf')),
  }
end

function ops.renew() end

-- The batch --------------------------------------------------------------------------------------------------------

if ARGV[5] ~= 'enter' and not is_alive(node) then return {'fenced'} end
if batch ~= '' then
  local before = redis.call('HMGET', key('b', node), 'batch', 'answers')
  if before[1] == batch then return cmsgpack.unpack(before[2]) end
end
if ARGV[5] ~= 'enter' then redis.call('ZADD', NODES, 'XX', now + lease, node) end
local answers, at = {'done'}, 5
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  local done, answer = pcall(ops[ARGV[at]], unpack(ARGV, at + 2, at + 1 + count))
  if not done then -- a key that is not what it should be: the rest of the batch has no part in it
    answer = {'error', type(answer) == 'table' and answer.err or tostring(answer)}
  end
  answers[#answers + 1] = answer or 0
  at = at + 2 + count
end
reap()
if batch ~= '' and redis.call('ZSCORE', NODES, node) then
  redis.call('HSET', key('b', node), 'batch', batch, 'answers', cmsgpack.pack(answers))
  redis.call('PEXPIRE', key('b', node), 4 * lease)
end
return answers
