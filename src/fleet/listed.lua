-- Reads the replicas that a list names, and takes out what is none.
-- KEYS: the list. ARGV: the most ids. Returns: the ids.
local key, most = KEYS[1], tonumber(ARGV[1])
local ids, seen, cursor = {}, {}, '0'
-- In small steps, since Redis cannot leave out a long member: it is met once. A list of what is none takes several calls.
for _ = 1, 100 do
    local step = redis.call('SSCAN', key, cursor, 'COUNT', 20)
    cursor = step[1]
    for _, id in ipairs(step[2]) do
        if #id ~= 32 or not string.match(id, '^%x+$') then
            redis.call('SREM', key, id)
        elseif not seen[id] then
            seen[id] = true
            ids[#ids + 1] = id
        end
    end
    if cursor == '0' or #ids >= most then break end
end
return ids
