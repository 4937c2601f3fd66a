-- The layer `core`: Channels puts a copy of each event of a group into a mailbox that stands for the group's history, as it
-- does for any other member of the group. The mailbox lies beside the history, and each caller moves what waits there.
--
-- Channels drops what finds the mailbox full, removes what has waited too long, and lets the mailbox expire with all of it. Where
-- that may have happened, an offset stays empty, so that all who read over it know. Two things show it: a mark in the mailbox,
-- which goes when the mailbox goes, and the field `m` of the position, a time (Unix milliseconds) at which nothing waited.
--
-- Each function takes KEYS: mailbox, history, position, group. ARGV: epoch of a new history, size, life of an event in milliseconds,
-- channel of the gateways, random bytes before an event, the most events, the capacity of the mailbox, the bytes of the longest
-- event, milliseconds that an event may wait, the time of this server (Unix milliseconds) up to which the caller knew of each event
-- of the group when it was sent (-1: it never did), the member that stands for the history. Others follow. The time is no span, because
-- the call may be under way for long: the caller, or this server, may have stood still meanwhile.

-- The mark. It is no event. Its score is above all others, which Channels removes from the lowest one on.
local MARK = ''

-- Returns the time in a field `m`; nil if there is none, or if others have written something else.
local function time_in(emptied)
    return type(emptied) == 'string' and #emptied <= 16 and string.find(emptied, '^%d+$') and tonumber(emptied) or nil
end

-- Returns true if events may have gone from the mailbox before those that wait.
local function may_lack(keys, argv, marked, waiting)
    local emptied
    if not marked or waiting > 1 then emptied = emptied_at(keys[3]) end
    -- Without the field the mailbox was never marked: until now Channels has sent to no member that stands for this history.
    if not marked then return emptied ~= false end
    -- An event goes when a later one is sent, and that one waits then. If a single one waits, the one before it was sent longer ago
    -- than an event may wait, and the mailbox would have expired. This holds for senders of one clock: where they differ by some
    -- seconds, an event that waited for about as long as it may can be missed.
    if waiting < 2 then return false end
    local known = time_in(emptied)
    if not known then return true end
    local now, heard = milliseconds(), tonumber(argv[10])
    if known > now + argv[9] / 4 then known = 0 end
    -- After a step back of this server's clock the caller's time is ahead of it.
    if heard >= 0 then known = math.max(known, math.min(heard, now)) end
    -- A quarter is for the clocks of the senders.
    return now - known >= argv[9] * 0.75
end

-- Leaves an offset empty and tells gateways. Returns the number of offsets, or an error table. Without a history there is no
-- position before the events that are missing.
local function leave_out(keys, argv)
    local epoch, offset = position_of(keys[3])
    if type(epoch) == 'table' then return epoch end
    if not epoch then return 0 end
    epoch, offset = append(keys[2], keys[3], argv[1], argv[2], tonumber(argv[3]), argv[4])
    if type(epoch) == 'table' then return epoch end
    redis.call('PUBLISH', argv[4], '1 h ' .. epoch .. ' ' .. number(offset))
    return 1
end

-- Moves what waits in the mailbox into the history, oldest first, and publishes it to gateways. Returns the number of events, of
-- those that still wait, of offsets that stay empty, and of those that waited. Or an error table, and true if the history may lack
-- events without an offset that shows it; an event that failed is in the mailbox again.
local function take_in(keys, argv)
    local count = redis.pcall('ZCARD', keys[1])
    if type(count) == 'table' then return count, true end
    local marked = redis.call('ZSCORE', keys[1], MARK)
    local waiting = marked and count - 1 or count
    local lacks = may_lack(keys, argv, marked, waiting)
    if waiting == 0 and not lacks then return 0, 0, 0, 0 end
    local refused = not_allowed('PUBLISH', argv[4], '') or not_allowed('XADD', keys[2], '1-1', 'e', '')
        or not_allowed('HSET', keys[3], 'epoch', '') or not_allowed('PEXPIRE', keys[2], '1')
    if refused then return refused, lacks end
    local empty = lacks and leave_out(keys, argv) or 0
    if type(empty) == 'table' then return empty, true end
    local moved, left = 0, waiting
    for _ = 1, math.min(waiting, tonumber(argv[6])) do
        local popped = redis.pcall('ZPOPMIN', keys[1])
        if popped.err then return popped, false end
        if #popped == 0 then break end
        left = left - 1
        local event = string.sub(popped[1], tonumber(argv[5]) + 1)
        if #event > 0 and #event <= tonumber(argv[8]) then
            local epoch, offset = append(keys[2], keys[3], argv[1], argv[2], tonumber(argv[3]), argv[4], event)
            if type(epoch) == 'table' then
                redis.call('ZADD', keys[1], popped[2], popped[1])
                return epoch, false
            end
            redis.call('PUBLISH', argv[4], '1 e ' .. epoch .. ' ' .. number(offset) .. '\n' .. event)
            moved = moved + 1
        end
    end
    -- Channels counts the mark as well.
    if count >= tonumber(argv[7]) then
        local more = leave_out(keys, argv)
        if type(more) == 'table' then return more, true end
        empty = empty + more
    end
    return moved, left, empty, waiting
end

-- Notes the time and marks the mailbox, if events have waited there or the time is old. The mailbox lives longer than the position.
-- Without the member Channels sends nothing to the mailbox, and a mark would promise that it does. A refusal shows as a loss later.
local function mark(keys, argv, left, waited, now)
    local found, wait = emptied_at(keys[3]), tonumber(argv[9])
    if type(found) == 'table' then return end
    local emptied = time_in(found)
    local old = not emptied or emptied > now or now - emptied > wait / 8
    if waited == 0 and not old then return end
    if not found then
        if redis.call('EXISTS', keys[3]) == 0 then return end
        if waited == 0 and type(redis.pcall('ZSCORE', keys[4], argv[11])) ~= 'string' then return end
    end
    if old then
        -- What went before those that still wait has its offset already.
        local oldest = left > 0 and redis.call('ZRANGE', keys[1], 0, 0, 'WITHSCORES')[2]
        if oldest then now = math.max(0, math.min(now, oldest * 1000)) end
        if type(redis.pcall('HSET', keys[3], 'm', number(now))) == 'table' then return end
    end
    local marked = redis.pcall('ZADD', keys[1], 'inf', MARK)
    if type(marked) == 'table' then return end
    redis.pcall('PEXPIRE', keys[1], number(life(tonumber(argv[3])) + wait))
end

-- Moves what waits. Returns the first three numbers of `take_in`, and the time.
local function move(keys, argv)
    local moved, left, empty, waited = take_in(keys, argv)
    if type(moved) == 'table' then return moved end
    local now = milliseconds()
    mark(keys, argv, left, waited + empty, now)
    return {moved, left, empty, now}
end

-- Moves what waits, then records an event and publishes it to gateways. Returns what `move` does, `EPOCH OFFSET`, the
-- number of members of the group, and those of them that are neither the mailbox nor gateways that hear of records.
-- An event that an earlier call with the same id has recorded is not recorded again.
-- More ARGV: the event, the latest score of a lapsed member, the most members, the bytes of the longest name, and the id of
-- the call if it has one.
local function record_here(keys, argv)
    local names = redis.pcall('ZREMRANGEBYSCORE', keys[4], 0, argv[13])
    if type(names) == 'table' then return names end
    local answer = {0, 0, 0, 0, '', redis.call('ZCARD', keys[4])}
    for _, name in ipairs(redis.call('ZRANGE', keys[4], 0, argv[14] - 1)) do
        if #name <= tonumber(argv[15]) and name ~= argv[11] and not string.find(name, '^specific%.%x+!h%x+$') then
            answer[#answer + 1] = name
        end
    end
    local moved, left, empty, waited = take_in(keys, argv)
    if type(moved) == 'table' then return moved end
    local at, now = recorded_before(keys[2], argv[16])
    if at then
        now = milliseconds()
    else
        local epoch, offset, time = append(keys[2], keys[3], argv[1], argv[2], tonumber(argv[3]), argv[4], argv[12])
        if type(epoch) == 'table' then return epoch end
        at, now = epoch .. ' ' .. number(offset), time
        redis.call('PUBLISH', argv[4], '1 e ' .. at .. '\n' .. argv[12])
        remember(keys[2], argv[16], at)
    end
    answer[1], answer[2], answer[3], answer[4], answer[5] = moved, left, empty, now, at
    mark(keys, argv, left, waited + empty, now)
    return answer
end

-- Moves what waits, then reads as `read` does. Returns what `move` does before the page. What cannot be moved is not in
-- the history yet; if it lacks more than that, nothing is read.
-- More ARGV: those of `read`.
local function read_here(keys, argv)
    local moved, left, empty, waited = take_in(keys, argv)
    local refused = type(moved) == 'table'
    if refused and left then return moved end
    local rest = {}
    for i = 12, #argv do rest[i - 11] = argv[i] end
    local page = read({keys[2], keys[3]}, rest)
    if page.err then return page end
    local now = milliseconds()
    if refused then
        moved, left, empty = 0, 1, 0
    else
        mark(keys, argv, left, waited + empty, now)
    end
    for i, value in ipairs({moved, left, empty, now}) do table.insert(page, i, value) end
    return page
end
