-- Reads a page of the users of a group, in the order of their ids. A user is there who has an entry of a replica; one who
-- lingers has none. The page is shorter where its entries are long.
-- KEYS: index, users, leaving. ARGV: the id after which the page begins ('': from the first), number of users, bytes of the
--       longest entry, bytes of the longest id, bytes of entries after which the page ends; then, if the page is not to be of all
--       users, the ids of those that it is of.
-- Returns: sockets, ids less those of users who linger, the ids of the replicas, the last id that was looked at ('' after the
--          last page), for each user the id and the entries of all replicas, and 1 if ids are out of order.
local index, users, leaving = KEYS[1], KEYS[2], KEYS[3]
local limit, longest, most_bytes = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5])
local STEP, OF = 20, 6
local replicas, sockets, page = {}, 0, {}
if redis.call('TYPE', index).ok == 'hash' and redis.call('HLEN', index) <= 1000 then
    for _, field in ipairs(redis.call('HKEYS', index)) do
        if #field == 32 and string.match(field, '^%x+$') then
            replicas[#replicas + 1] = field
            if redis.call('HSTRLEN', index, field) <= 10 then
                local number = redis.call('HGET', index, field)
                if string.match(number, '^%d+$') then sockets = sockets + tonumber(number) end
            end
        elseif #field > 64 then
            -- Redis cannot leave it out. It goes, so that it is met once.
            redis.pcall('HDEL', index, field)
        end
    end
end
if redis.call('TYPE', users).ok ~= 'zset' then return { sockets, 0, replicas, '', page, 0 } end
local count, disordered = redis.call('ZCARD', users), 0
-- Ids are in order among those of one score. Ours have 0.
if redis.call('ZCOUNT', users, 0, 0) < count then disordered = 1 end
if redis.call('TYPE', leaving).ok == 'zset' then count = count - redis.call('ZCARD', leaving) end

-- Returns the ids of the page. In small steps, since Redis cannot leave out a long one. It goes, so that it is met once.
local function ids_behind(id)
    local ids, from = {}, '-'
    if id ~= '' then from = '(' .. id end
    for _ = 1, limit do
        local wanted = math.min(STEP, limit - #ids)
        local step = redis.call('ZRANGEBYLEX', users, from, '+', 'LIMIT', 0, wanted)
        for _, found in ipairs(step) do
            if #found <= longest then
                ids[#ids + 1] = found
            else
                redis.pcall('ZREM', users, found)
            end
        end
        if #step < wanted or #ids >= limit then break end
        from = '(' .. step[#step]
    end
    return ids
end

local ids = {}
if #ARGV >= OF then
    for i = OF, #ARGV do ids[#ids + 1] = ARGV[i] end
else
    ids = ids_behind(ARGV[1])
end
local last, bytes = '', 0
if #ids == limit then last = ids[#ids] end
for at, id in ipairs(ids) do
    local entries = {}
    for _, replica in ipairs(replicas) do
        local key = index .. ':' .. replica
        local size = redis.pcall('HSTRLEN', key, id)
        if type(size) == 'number' and size > 0 and size <= tonumber(ARGV[3]) then
            entries[#entries + 1] = redis.call('HGET', key, id)
            bytes = bytes + size
        end
    end
    if #entries > 0 then page[#page + 1] = { id, entries } end
    if bytes >= most_bytes and at < #ids then
        last = id
        break
    end
end
return { sockets, count, replicas, last, page, disordered }
