-- Shows that a replica lives, and reads which others do.
-- KEYS: the replicas of a tenant. ARGV: own id ('': only read), its life in ms (0: it has ended), ms after which a dead one
--       is forgotten, the longest life in ms.
-- Returns: '1' if the own id lived until now, the ids of the living, the ids of the dead.
local key, me, life = KEYS[1], ARGV[1], tonumber(ARGV[2])
local keep, longest = tonumber(ARGV[3]), tonumber(ARGV[4])
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
-- A clock that was put back must not let a dead replica live on.
for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. (now + longest), '+inf', 'LIMIT', 0, 1000)) do
    redis.call('ZADD', key, now + longest, ahead)
end
redis.call('PEXPIRE', key, longest + keep)
-- What someone else wrote is no replica.
local function replicas(...)
    local ids = {}
    for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', key, ...)) do
        if #id == 32 and string.match(id, '^%x+$') then ids[#ids + 1] = id end
    end
    return ids
end
return {
    lived,
    replicas('+inf', '(' .. now, 'LIMIT', 0, 1000),
    replicas(now, '-inf', 'LIMIT', 0, 1000),
}
