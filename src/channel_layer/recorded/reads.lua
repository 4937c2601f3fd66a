-- Reads of a history; they follow the functions of `history.lua`.

-- Stores a position without events.
local function begin(history, position, epoch, ttl)
    local emptied = emptied_at(position)
    local gone = remove(history, position)
    if type(gone) == 'table' then return gone end
    local values = {'epoch', epoch, 'offset', '0', 'run', process() or ''}
    if type(emptied) == 'string' then
        values[7], values[8] = 'm', emptied
    end
    local stored = redis.pcall('HSET', position, unpack(values))
    if type(stored) == 'table' then return stored end
    redis.pcall('PEXPIRE', position, life(ttl))
end

-- The most entries that are fetched at once. Each may be as long as Redis lets one be.
local FETCHED = 8

-- Returns the entries between two offsets that are an event each, up to a number of entries and of bytes, as offset, event, …
-- then true if others follow, and the number of entries that are not readable. Entries that are oversized are removed, so that
-- they are fetched once; readers find a hole.
local function entries(history, from, to, oldest, most, bytes)
    local out, count, size, largest, ask, unreadable = {}, 0, 0, 0, 1, 0
    while from <= to do
        local some = redis.pcall('XRANGE', history, number(from) .. '-0', number(to) .. '-0', 'COUNT', ask)
        if some.err then return out, false, unreadable end
        for _, entry in ipairs(some) do
            local offset, part = string.match(entry[1], '^(%d+)-(%d+)$')
            if count >= most or size >= bytes then return out, true, unreadable end
            from = tonumber(offset) + 1
            local event
            for i = 1, #entry[2], 2 do
                if entry[2][i] == 'e' then event = entry[2][i + 1] end
            end
            if event and #event > largest then largest = #event end
            local time = time_of(entry)
            local oversized = is_oversized(entry)
            if oversized or part ~= '0' or not event or #event > LONGEST_EVENT or not time then
                unreadable = unreadable + 1
                if oversized then redis.pcall('XDEL', history, entry[1]) end
            elseif time > oldest then
                out[#out + 1] = offset
                out[#out + 1] = event
                count, size = count + 1, size + #event
            end
        end
        if #some < ask then return out, false, unreadable end
        ask = math.max(1, math.min(FETCHED, 2 * ask, math.floor((bytes - size) / (largest + 1))))
    end
    return out, false, unreadable
end

-- Returns the offset after which to read for one that stands at an offset of an epoch.
local function place_in(epoch, past, asked, offset)
    if asked == epoch or asked == '' then return offset end
    for _, text in ipairs(past) do
        local ended, last = string.match(text, '^(%w+) (%d+)')
        if ended == asked then return math.min(offset, tonumber(last)) end
    end
    return 0
end

-- Reads the events after an offset. Returns epoch, newest offset, 1 if more follow, the epochs before (`EPOCH OFFSET`, perhaps
-- ` lost`, with commas between), the number of values that are not readable, then offset, event, ….
-- KEYS: history, position. ARGV: epoch of a new history, life of an event in milliseconds, the epoch of the offset (or
-- nothing, if the offset holds in any), the offset, the most events, the most bytes.
local function read(keys, argv)
    local ttl = tonumber(argv[2])
    local epoch, newest, _, run = position_of(keys[2])
    if type(epoch) == 'table' then return epoch end
    local here = epoch and epoch_here(keys[2], epoch, newest, run, argv[1])
    if type(here) ~= 'table' then epoch = here end
    local past = epoch and past_of(keys[2])
    if not past then
        local refused = begin(keys[1], keys[2], argv[1], ttl)
        -- A Redis that takes no writes is read all the same: its history is empty.
        if refused and not string.find(refused.err, '^OOM') and not string.find(refused.err, '^MISCONF') then return refused end
        return {argv[1], '0', 0, '', epoch == nil and 0 or 1}
    end
    if past.err then return past end
    redis.pcall('PEXPIRE', keys[2], life(ttl))
    local after = place_in(epoch, past, argv[3], tonumber(argv[4]))
    local found, more, unreadable = entries(keys[1], after + 1, newest, milliseconds() - ttl, tonumber(argv[5]), tonumber(argv[6]))
    local page = {epoch, number(newest), more and 1 or 0, table.concat(past, ','), unreadable}
    for _, value in ipairs(found) do page[#page + 1] = value end
    return page
end

-- Notes that events up to an offset of an epoch were delivered, and that the history has lost the newest of them. Begins a new
-- history if the epoch is still the present one. If it has ended where fewer events were left, all that stand before that
-- place are told. Returns epoch and newest offset.
-- KEYS: history, position. ARGV: epoch of the new history, life of an event in milliseconds, the epoch, the offset.
local function renew(keys, argv)
    local epoch, newest = position_of(keys[2])
    if type(epoch) == 'table' then return epoch end
    local past = epoch and past_of(keys[2])
    if past and past.err then return past end
    if past and epoch ~= argv[3] then
        local place, newest_there
        for i, text in ipairs(past) do
            local ended, last, lost = string.match(text, '^(%w+) (%d+)(.*)$')
            -- Epochs that have ended at the same place lack the same events.
            if last ~= place then place, newest_there = last, {PAST[i], text, lost} end
            if ended == argv[3] and tonumber(last) < tonumber(argv[4]) and newest_there[3] == '' then
                local noted = redis.pcall('HSET', keys[2], newest_there[1], newest_there[2] .. ' lost')
                if type(noted) == 'table' then return noted end
            end
        end
        return {epoch, number(newest)}
    end
    local refused = begin(keys[1], keys[2], argv[1], tonumber(argv[2]))
    return refused or {argv[1], '0'}
end
