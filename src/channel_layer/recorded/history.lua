-- The history of a group in Redis: a stream whose entry ids are OFFSET-0, with the event's bytes in `e` and its time in `t`
-- (Unix milliseconds), and a hash with the `epoch` and the newest `offset`. Each function runs as a whole or not at all.
-- The gateway runs them as scripts; back ends run `lockgate_record` as a function of the library `lockgate`.

-- The longest life of a position without events, in milliseconds; at least twice the life of events.
local POSITION_LIFE = 3600000
-- The most old entries that one record looks at.
local TRIMMED = 16
-- Offsets beyond this are not exact in Lua.
local MOST = 9007199254740000

local function number(value) return string.format('%.0f', value) end

local function milliseconds()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function life(ttl) return number(math.max(2 * ttl, POSITION_LIFE)) end

-- Returns epoch and offset; nil if there is no position or it is not readable. Returns an error table first if Redis
-- refuses the read.
local function position_of(key)
    local found = redis.pcall('HMGET', key, 'epoch', 'offset')
    if found.err then
        if string.find(found.err, 'WRONGTYPE', 1, true) then return nil end
        return found
    end
    local epoch, offset = found[1], found[2]
    if not epoch or not offset or #epoch > 64 or not string.find(epoch, '^%w+$') then return nil end
    if #offset > 16 or not string.find(offset, '^%d+$') or tonumber(offset) > MOST then return nil end
    return epoch, tonumber(offset)
end

-- Returns the time of an entry; nil if it is not one of a history.
local function time_of(entry)
    local fields = entry[2]
    for i = 1, #fields, 2 do
        if fields[i] == 't' then return tonumber(fields[i + 1]) end
    end
end

local function is_old(entry, oldest) return (time_of(entry) or 0) <= oldest end

-- Removes entries that are too old, from the oldest one on.
local function trim(history, oldest)
    local first = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
    if not first or not is_old(first, oldest) then return end
    local last = first[1]
    for _, entry in ipairs(redis.call('XRANGE', history, '-', '+', 'COUNT', TRIMMED)) do
        if not is_old(entry, oldest) then
            redis.call('XTRIM', history, 'MINID', '=', entry[1])
            return
        end
        last = entry[1]
    end
    local offset, part = string.match(last, '^(%d+)-(%d+)$')
    redis.call('XTRIM', history, 'MINID', '=', offset .. '-' .. number(tonumber(part) + 1))
end

-- Adds an event to a history. Returns its epoch and offset, or an error table; then nothing was added. A history that cannot
-- take the next offset (another type, foreign entries) begins again in the epoch `fresh`.
local function append(history, position, fresh, size, ttl, event)
    local now = milliseconds()
    local epoch, offset = position_of(position)
    if type(epoch) == 'table' then return epoch end
    local added
    for _ = 1, 2 do
        if not epoch then
            local gone = redis.pcall('DEL', history, position)
            if type(gone) == 'table' then return gone end
            epoch, offset = fresh, 0
        end
        added = redis.pcall('XADD', history, 'MAXLEN', '=', size, number(offset + 1) .. '-0', 'e', event, 't', number(now))
        if type(added) ~= 'table' or not added.err then break end
        local foreign = string.find(added.err, 'WRONGTYPE', 1, true) or string.find(added.err, 'equal or smaller', 1, true)
            or string.find(added.err, 'exhausted', 1, true)
        if not foreign then return added end
        epoch = nil
    end
    if type(added) == 'table' and added.err then return added end
    local moved = redis.pcall('HSET', position, 'epoch', epoch, 'offset', number(offset + 1))
    if type(moved) == 'table' then
        redis.pcall('XDEL', history, added)
        return moved
    end
    trim(history, now - ttl)
    redis.call('PEXPIRE', history, number(ttl))
    redis.call('PEXPIRE', position, life(ttl))
    return epoch, offset + 1
end

-- Records an event and publishes it: first its position for gateways, then the event as it is for gateways and consumers.
-- Returns `EPOCH OFFSET`, or an error; then nothing was published.
-- KEYS: history, position. ARGV: epoch of a new history, size, life of an event in milliseconds, channel of the gateways,
-- channel of the group, event.
local function record(keys, argv)
    local epoch, offset = append(keys[1], keys[2], argv[1], argv[2], tonumber(argv[3]), argv[6])
    if type(epoch) == 'table' then return epoch end
    local at = epoch .. ' ' .. number(offset)
    redis.call('PUBLISH', argv[4], '1 r ' .. at)
    redis.call('PUBLISH', argv[5], argv[6])
    return at
end

-- Stores a position without events.
local function begin(history, position, epoch, ttl)
    local gone = redis.pcall('DEL', history, position)
    if type(gone) == 'table' then return gone end
    local stored = redis.pcall('HSET', position, 'epoch', epoch, 'offset', '0')
    if type(stored) == 'table' then return stored end
    redis.pcall('PEXPIRE', position, life(ttl))
end

-- Returns the entries between two offsets that are an event each, up to a number of entries and of bytes, as offset, event, …
-- and true if others follow.
local function entries(history, from, to, oldest, most, bytes, longest)
    local out, count, size, largest, ask = {}, 0, 0, 0, 4
    while from <= to do
        local some = redis.pcall('XRANGE', history, number(from) .. '-0', number(to) .. '-0', 'COUNT', ask)
        if some.err then return out, false end
        for _, entry in ipairs(some) do
            local offset, part = string.match(entry[1], '^(%d+)-(%d+)$')
            if count >= most or size >= bytes then return out, true end
            from = tonumber(offset) + 1
            local event
            for i = 1, #entry[2], 2 do
                if entry[2][i] == 'e' then event = entry[2][i + 1] end
            end
            if event and #event > largest then largest = #event end
            local time = time_of(entry)
            if part == '0' and event and #event <= longest and time and time > oldest then
                out[#out + 1] = offset
                out[#out + 1] = event
                count, size = count + 1, size + #event
            end
        end
        if #some < ask then return out, false end
        ask = math.max(1, math.min(128, math.floor((bytes - size) / (largest + 1))))
    end
    return out, false
end

-- Reads the events after an offset. Returns epoch, newest offset, 1 if more follow, then offset, event, ….
-- KEYS: history, position. ARGV: epoch of a new history, life of an event in milliseconds, the epoch of the offset (or
-- nothing), the offset, the most events, the most bytes, the bytes of the longest event.
local function read(keys, argv)
    local ttl = tonumber(argv[2])
    local epoch, newest = position_of(keys[2])
    if type(epoch) == 'table' then return epoch end
    if not epoch then
        local refused = begin(keys[1], keys[2], argv[1], ttl)
        -- A Redis that takes no writes is read all the same: its history is empty.
        if refused and not string.find(refused.err, '^OOM') and not string.find(refused.err, '^MISCONF') then return refused end
        return {argv[1], '0', 0}
    end
    redis.pcall('PEXPIRE', keys[2], life(ttl))
    local after = argv[3] == epoch and tonumber(argv[4]) or 0
    local found, more = entries(keys[1], after + 1, newest, milliseconds() - ttl, tonumber(argv[5]), tonumber(argv[6]), tonumber(argv[7]))
    local page = {epoch, number(newest), more and 1 or 0}
    for _, value in ipairs(found) do page[#page + 1] = value end
    return page
end

-- Begins a new epoch if the present one is still the one that is given. Returns epoch and newest offset.
-- KEYS: history, position. ARGV: epoch of the new history, life of an event in milliseconds, the epoch to end.
local function renew(keys, argv)
    local epoch, newest = position_of(keys[2])
    if type(epoch) == 'table' then return epoch end
    if epoch and epoch ~= argv[3] then return {epoch, number(newest)} end
    local refused = begin(keys[1], keys[2], argv[1], tonumber(argv[2]))
    return refused or {argv[1], '0'}
end
