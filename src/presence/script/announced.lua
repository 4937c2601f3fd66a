-- Reads which users the members of a group know of: those who are there and those who linger.
-- KEYS: index, users. ARGV: bytes of the longest id, number of ids, bytes of all ids.
-- Returns: epoch ('': none), number of the last notice, their ids.
local index, users = KEYS[1], KEYS[2]
local longest, most, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local STEP, epoch, number, ids = 20, '', 0, {}

-- Returns the value of a field; nil if there is none, or one that is too long.
local function short(field)
    local size = redis.call('HSTRLEN', index, field)
    if size > 0 and size <= 64 then return redis.call('HGET', index, field) end
end

if redis.call('TYPE', index).ok == 'hash' then
    local found = short('epoch')
    if found and string.match(found, '^%x+$') then epoch = found end
    number = tonumber(short('changes') or 0) or 0
    if number < 0 or number > 2 ^ 52 then number = 0 end
end
if redis.call('TYPE', users).ok == 'zset' then
    -- In small steps, since Redis cannot leave out a long id. It goes, so that it is met once.
    local at, bytes, step = 0, 0, nil
    repeat
        step = redis.call('ZRANGE', users, at, at + STEP - 1)
        for _, id in ipairs(step) do
            if #id <= longest then
                ids[#ids + 1] = id
                bytes = bytes + #id
                at = at + 1
            elseif redis.pcall('ZREM', users, id) ~= 1 then
                at = at + 1
            end
        end
    until #step < STEP or #ids >= most or bytes >= most_bytes
end
return { epoch, number, ids }
