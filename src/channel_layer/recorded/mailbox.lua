-- The layer `core`: Channels puts a copy of each event of a group into a mailbox that stands for the group's history, as it
-- does for any other member of the group. The mailbox lies beside the history, and each caller moves what waits there.

-- Moves what waits in the mailbox into the history, oldest first, and publishes it to gateways. Returns the number of events
-- and of those that still wait, or an error table; then the event that failed is in the mailbox again.
-- KEYS: mailbox, history, position. ARGV: epoch of a new history, size, life of an event in milliseconds, channel of the
-- gateways, random bytes before an event, the most events, the capacity of the mailbox, the bytes of the longest event.
local function take_in(keys, argv)
    local waiting = redis.pcall('ZCARD', keys[1])
    if type(waiting) == 'table' then return waiting end
    if waiting == 0 then return 0, 0 end
    local refused = not_allowed('PUBLISH', argv[4], '') or not_allowed('XADD', keys[2], '1-1', 'e', '')
        or not_allowed('HSET', keys[3], 'epoch', '') or not_allowed('PEXPIRE', keys[2], '1')
    if refused then return refused end
    local moved, left = 0, waiting
    for _ = 1, math.min(waiting, tonumber(argv[6])) do
        local popped = redis.pcall('ZPOPMIN', keys[1])
        if popped.err then return popped end
        if #popped == 0 then break end
        left = left - 1
        local event = string.sub(popped[1], tonumber(argv[5]) + 1)
        if #event > 0 and #event <= tonumber(argv[8]) then
            local epoch, offset = append(keys[2], keys[3], argv[1], argv[2], tonumber(argv[3]), event)
            if type(epoch) == 'table' then
                redis.call('ZADD', keys[1], popped[2], popped[1])
                return epoch
            end
            redis.call('PUBLISH', argv[4], '1 e ' .. epoch .. ' ' .. number(offset) .. '\n' .. event)
            moved = moved + 1
        end
    end
    -- Channels drops what finds the mailbox full.
    if waiting >= tonumber(argv[7]) then redis.call('PUBLISH', argv[4], '1 g') end
    return moved, left
end

local function move(keys, argv)
    local moved, left = take_in(keys, argv)
    if type(moved) == 'table' then return moved end
    return {moved, left}
end

-- Moves what waits, then records an event and publishes it to gateways. Returns `EPOCH OFFSET`, the number of events that were
-- moved and of members of the group, and those of them that are neither the mailbox nor gateways that hear of records.
-- KEYS: as `move`, and the group. ARGV: as `move`, and the event, the latest score of a lapsed member, the most members,
-- the bytes of the longest name, the member that stands for the history.
local function record_here(keys, argv)
    local names = redis.pcall('ZREMRANGEBYSCORE', keys[4], 0, argv[10])
    if type(names) == 'table' then return names end
    local answer = {'', 0, redis.call('ZCARD', keys[4])}
    for _, name in ipairs(redis.call('ZRANGE', keys[4], 0, argv[11] - 1)) do
        if #name <= tonumber(argv[12]) and name ~= argv[13] and not string.find(name, '^specific%.%x+!h%x+$') then
            answer[#answer + 1] = name
        end
    end
    local moved = take_in(keys, argv)
    if type(moved) == 'table' then return moved end
    local epoch, offset = append(keys[2], keys[3], argv[1], argv[2], tonumber(argv[3]), argv[9])
    if type(epoch) == 'table' then return epoch end
    answer[1], answer[2] = epoch .. ' ' .. number(offset), moved
    redis.call('PUBLISH', argv[4], '1 e ' .. answer[1] .. '\n' .. argv[9])
    return answer
end

-- Moves what waits, then reads as `read` does. Returns the number of events that were moved before the page. What cannot be
-- moved is not in the history yet.
-- KEYS: as `move`. ARGV: as `move`, then those of `read`.
local function read_here(keys, argv)
    local moved = take_in(keys, argv)
    local rest = {}
    for i = 9, #argv do rest[i - 8] = argv[i] end
    local page = read({keys[2], keys[3]}, rest)
    if not page.err then table.insert(page, 1, type(moved) == 'table' and 0 or moved) end
    return page
end
