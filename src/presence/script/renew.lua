-- Shows that a replica lives, and reads which others do.
-- KEYS: the replicas of a tenant. ARGV: own id ('': only read), its life in ms (0: it has ended), ms after which a dead one
--       is forgotten, the longest life in ms.
-- Returns: '1' if the own id lived until now, the ids of the living, the ids of the dead.
local key, me, life = KEYS[1], ARGV[1], tonumber(ARGV[2])
local keep, longest = tonumber(ARGV[3]), tonumber(ARGV[4])
local MOST, STEP = 1000, 20
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('TYPE', key).ok
if found ~= 'zset' and found ~= 'none' then redis.call('DEL', key) end
local lived = 0
if me ~= '' then
    local until_then = redis.call('ZSCORE', key, me)
    if until_then and tonumber(until_then) > now then lived = 1 end
    redis.call('ZADD', key, now + life, me)
end
redis.call('ZREMRANGEBYSCORE', key, '-inf', now - keep)

-- Takes out what someone else wrote, and returns true if it is a replica. Redis cannot leave out a long one: so the steps are
-- small, and each is met once.
local function is_replica(id)
    if #id == 32 and string.match(id, '^%x+$') then return true end
    redis.call('ZREM', key, id)
    return false
end

-- A clock that was put back must not let a dead replica live on.
for _ = 1, MOST / STEP do
    local ahead = redis.call('ZRANGEBYSCORE', key, '(' .. (now + longest), '+inf', 'LIMIT', 0, STEP)
    for _, id in ipairs(ahead) do
        if is_replica(id) then redis.call('ZADD', key, now + longest, id) end
    end
    if #ahead < STEP then break end
end
redis.call('PEXPIRE', key, longest + keep)

local function replicas(from, to)
    local ids = {}
    for _ = 1, MOST / STEP do
        local step = redis.call('ZREVRANGEBYSCORE', key, from, to, 'LIMIT', #ids, STEP)
        for _, id in ipairs(step) do
            if is_replica(id) then ids[#ids + 1] = id end
        end
        if #step < STEP then break end
    end
    return ids
end
return { lived, replicas('+inf', '(' .. now), replicas(now, '-inf') }
