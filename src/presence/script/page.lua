-- Reads a page of the users of a group, in the order of their ids. A user is there who has an entry of a replica; one who
-- lingers has none.
-- KEYS: index, users, leaving. ARGV: the id after which the page begins ('': from the first), number of users, bytes of the
--       longest entry; then, if the page is not to be of all users, the ids of those that it is of.
-- Returns: sockets, ids less those of users who linger, the ids of the replicas, the last id that was looked at ('' after the
--          last page), for each user the id and the entries of all replicas, and 1 if ids are out of order.
local index, users, leaving = KEYS[1], KEYS[2], KEYS[3]
local replicas, sockets, page = {}, 0, {}
if redis.call('TYPE', index).ok == 'hash' and redis.call('HLEN', index) <= 1000 then
    local fields = redis.call('HGETALL', index)
    for i = 1, #fields, 2 do
        if #fields[i] == 32 and string.match(fields[i], '^%x+$') then
            replicas[#replicas + 1] = fields[i]
            if string.match(fields[i + 1], '^%d+$') then sockets = sockets + tonumber(fields[i + 1]) end
        end
    end
end
if redis.call('TYPE', users).ok ~= 'zset' then return { sockets, 0, replicas, '', page, 0 } end
local count, disordered = redis.call('ZCARD', users), 0
-- Ids are in order among those of one score. Ours have 0.
if redis.call('ZCOUNT', users, 0, 0) < count then disordered = 1 end
if redis.call('TYPE', leaving).ok == 'zset' then count = count - redis.call('ZCARD', leaving) end
local from = '-'
if ARGV[1] ~= '' then from = '(' .. ARGV[1] end
local ids = {}
if #ARGV > 3 then
    for i = 4, #ARGV do ids[#ids + 1] = ARGV[i] end
else
    ids = redis.call('ZRANGEBYLEX', users, from, '+', 'LIMIT', 0, ARGV[2])
end
for _, id in ipairs(ids) do
    local entries = {}
    for _, replica in ipairs(replicas) do
        local key = index .. ':' .. replica
        local size = redis.pcall('HSTRLEN', key, id)
        if type(size) == 'number' and size > 0 and size <= tonumber(ARGV[3]) then
            entries[#entries + 1] = redis.call('HGET', key, id)
        end
    end
    if #entries > 0 then page[#page + 1] = { id, entries } end
end
local last = ''
if #ids == tonumber(ARGV[2]) then last = ids[#ids] end
return { sockets, count, replicas, last, page, disordered }
