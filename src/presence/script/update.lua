-- Writes what one replica knows of a group, takes back what dead replicas left, and tells the other replicas who joined and left.
-- KEYS: index, users, leaving, own hash.
-- ARGV: own id, epoch of a new index, channel of notices ('' tells none), linger in ms, life of the keys in s, own sockets,
--       whether the own hash is written whole ('1'), bytes of the longest id, number of dead ids, the dead ids, then for each user: id, sockets, fields.
-- Returns: ms until the next user has left (-1: none), users in the own hash (another number if users lacks some),
--          '1' if there is more to take back, the ids of the other replicas, the error of the publish ('': none).
local index, users, leaving, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local me, channel, linger, life = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local MOST, STEP, longest = 200, 20, tonumber(ARGV[8])
local joined, left, more = {}, {}, 0

-- What someone else wrote under a key of ours goes: nothing can be kept in a value of another type.
for key, kind in pairs({ [index] = 'hash', [users] = 'zset', [leaving] = 'zset', [own] = 'hash' }) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end
if redis.call('HLEN', index) > 1000 then redis.call('DEL', index) end
-- The first write: a server that takes none ends the script here, before it has done half of it.
redis.call('HSET', index, 'version', 1)

local dead, others = {}, {}
local first = 10 + tonumber(ARGV[9])
for i = 10, first - 1 do dead[ARGV[i]] = true end
for _, field in ipairs(redis.call('HKEYS', index)) do
    if #field == 32 and string.match(field, '^%x+$') then
        if field ~= me and not dead[field] then others[#others + 1] = field end
    elseif #field > 64 then
        -- Redis cannot leave it out. It goes, so that it is met once.
        redis.call('HDEL', index, field)
    end
end

-- Returns true if the user is here or at another replica.
local function held(id)
    if redis.call('HEXISTS', own, id) == 1 then return true end
    for _, other in ipairs(others) do
        if redis.pcall('HEXISTS', index .. ':' .. other, id) == 1 then return true end
    end
    return false
end

local function gone(id)
    if held(id) or not redis.call('ZSCORE', users, id) then return end
    if linger > 0 then
        redis.call('ZADD', leaving, 'NX', now + linger, id)
    else
        redis.call('ZREM', users, id)
        left[#left + 1] = id
    end
end

-- Does `act` for the ids of a range, which it takes out of the range. In small steps, since Redis cannot leave out a long id, which
-- is no user's: it goes, so that it is met once.
local function each(key, from, to, act)
    for _ = 1, MOST / STEP do
        local ids = redis.call('ZRANGEBYSCORE', key, from, to, 'LIMIT', 0, STEP)
        for _, id in ipairs(ids) do
            if #id <= longest then act(id) else redis.call('ZREM', key, id) end
        end
        if #ids < STEP then return end
    end
    more = 1
end

-- Ids that someone else wrote with a score of their own would stand out of order, and turn pages back.
local function put_in_order(id)
    if held(id) or redis.call('ZSCORE', leaving, id) then
        redis.call('ZADD', users, 0, id)
    else
        redis.call('ZREM', users, id)
    end
end
each(users, '-inf', '(0', put_in_order)
each(users, '(0', '+inf', put_in_order)

-- A clock that was put back must not let one who left linger until it has caught up.
each(leaving, '(' .. (now + linger), '+inf', function(id) redis.call('ZADD', leaving, now + linger, id) end)
-- Users whose time has come. First, so that one who comes back now has left before.
each(leaving, '-inf', now, function(id)
    redis.call('ZREM', leaving, id)
    -- One who is here has not left: someone else wrote the entry.
    if not held(id) and redis.call('ZREM', users, id) == 1 then left[#left + 1] = id end
end)

-- Users who are here. Before the dead replicas, so that one who moved from there to here has not left.
local before = {}
if ARGV[7] == '1' then
    before = redis.call('HKEYS', own)
    redis.call('DEL', own)
end
for i = first, #ARGV, 3 do
    local id = ARGV[i]
    if ARGV[i + 1] ~= '0' then
        redis.call('HSET', own, id, '{"sockets":' .. ARGV[i + 1] .. ',"user":' .. ARGV[i + 2] .. '}')
        redis.call('ZREM', leaving, id)
        if redis.call('ZADD', users, 0, id) == 1 then
            joined[#joined + 1] = '{"id":' .. cjson.encode(id) .. ',"user":' .. ARGV[i + 2] .. '}'
        end
    end
end

-- Users of replicas that ended without a word.
for i = 10, first - 1 do
    local key = index .. ':' .. ARGV[i]
    local found = redis.call('TYPE', key).ok
    if found == 'hash' then
        -- From the beginning each time, past the places that are empty by now.
        local cursor, taken = '0', 0
        repeat
            local step = redis.call('HSCAN', key, cursor, 'COUNT', STEP)
            cursor = step[1]
            for at = 1, #step[2], 2 do
                taken = taken + 1
                redis.call('HDEL', key, step[2][at])
                if #step[2][at] <= longest then gone(step[2][at]) end
            end
        until cursor == '0' or taken >= MOST
    elseif found ~= 'none' then
        redis.call('DEL', key)
    end
    if redis.call('EXISTS', key) == 1 then more = 1 else redis.call('HDEL', index, ARGV[i]) end
end

-- Users who are no longer here.
for i = first, #ARGV, 3 do
    if ARGV[i + 1] == '0' then
        redis.call('HDEL', own, ARGV[i])
        gone(ARGV[i])
    end
end
for _, id in ipairs(before) do
    if #id <= longest then gone(id) end
end

if ARGV[6] == '0' then redis.call('HDEL', index, me) else redis.call('HSET', index, me, ARGV[6]) end
local epoch = redis.call('HSTRLEN', index, 'epoch') <= 64 and redis.call('HGET', index, 'epoch')
if not epoch or not string.match(epoch, '^%x+$') then
    epoch = ARGV[2]
    redis.call('HSET', index, 'epoch', epoch, 'changes', 0)
end

local refused = ''
if channel ~= '' and #joined + #left > 0 then
    local number = redis.pcall('HINCRBY', index, 'changes', 1)
    if type(number) ~= 'number' then
        epoch, number = ARGV[2], 1
        redis.call('HSET', index, 'epoch', epoch, 'changes', number)
    end
    for i, id in ipairs(left) do left[i] = cjson.encode(id) end
    local told = redis.pcall('PUBLISH', channel, '1 p {"epoch":"' .. epoch .. '","n":' .. number
        .. ',"left":[' .. table.concat(left, ',') .. '],"joined":[' .. table.concat(joined, ',') .. ']}')
    if type(told) == 'table' and told.err then refused = told.err end
end

for _, key in ipairs({ index, users, leaving, own }) do redis.call('EXPIRE', key, life) end
-- Where no user is, no member remembers the epoch.
if redis.call('EXISTS', users) == 0 then redis.call('EXPIRE', index, math.min(life, 60)) end
local next = redis.call('ZRANGE', leaving, 0, 0, 'WITHSCORES')
while next[1] and #next[1] > longest do
    redis.call('ZREM', leaving, next[1])
    next = redis.call('ZRANGE', leaving, 0, 0, 'WITHSCORES')
end
local wait = -1
if next[2] then wait = math.max(0, tonumber(next[2]) - now) end
local here = redis.call('HLEN', own)
-- Someone else took users out of the set: another number than the replica expects makes it write all of its own.
if redis.call('ZCARD', users) < here then here = here + 1 end
return { wait, here, more, others, refused }
