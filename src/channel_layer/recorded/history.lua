-- The history of a group in Redis: a stream whose entry ids are OFFSET-0, with the event's bytes in `e` and its time in `t`
-- (Unix milliseconds), and a hash with the `epoch` and the newest `offset`, its time `t`, the server process `run` that wrote it,
-- where the epochs before have ended (`past1`, …), and on `core` a time `m` (`mailbox.lua`). Each function runs as a whole or not at all.
-- The gateway runs them as scripts; back ends run `lockgate_record` as a function of the library `lockgate`.

-- The longest life of a position without events, in milliseconds; at least twice the life of events.
local POSITION_LIFE = 3600000
-- Old entries are looked for by every fourth record, which removes at most 32.
local TRIMMED_EVERY, TRIMMED = 4, 32
-- Offsets beyond this are not exact in Lua.
local MOST = 9007199254740000
-- No server starts, and none takes over from another one, within so many milliseconds.
local TAKE_OVER = 10
-- The epochs before that a position remembers, newest first: `EPOCH OFFSET`, and ` lost` if events after that offset were lost.
local PAST = {'past1', 'past2', 'past3', 'past4'}
-- No event is longer, in bytes: `MAX_PAYLOAD` of the gateway.
local LONGEST_EVENT = 8388608
-- No value of a position is longer, in bytes.
local LONGEST_VALUE = 96
-- The most fields and values of an entry, together. A history has four.
local MOST_TEXTS = 16

-- A call whose answer was lost may come again: its id is remembered for so many milliseconds.
local REMEMBERED = 120000

-- The id of this server process. A function of the library asks once for it, a script in each call.
local known_process

local function number(value) return string.format('%.0f', value) end

local function milliseconds()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function life(ttl) return number(math.max(2 * ttl, POSITION_LIFE)) end

-- Returns the id of this server process; nil if the user may not ask.
local function process()
    if known_process then return known_process end
    if redis.acl_check_cmd then
        -- It fails where the server has renamed the command.
        local known, may = pcall(redis.acl_check_cmd, 'INFO', 'server')
        if not (known and may) then return nil end
    end
    local info = redis.pcall('INFO', 'server')
    known_process = type(info) == 'string' and string.match(info, 'run_id:(' .. string.rep('%w', 16) .. ')') or nil
    return known_process
end

-- Returns the values of some fields of a position; nil if it is of another type, or if one of them is too long. Then none is
-- fetched: Redis would stand still while it copies hundreds of megabytes. Returns an error table if Redis refuses the read.
local function values_of(position, fields)
    local encoding = redis.pcall('OBJECT', 'ENCODING', position)
    -- Such a hash has no value above `hash-max-listpack-value`, by default 64 bytes. One question costs less than one for each field.
    local is_short = encoding == 'listpack' or encoding == 'ziplist'
    for _, field in ipairs(is_short and {} or fields) do
        local length = redis.pcall('HSTRLEN', position, field)
        -- A user with rights from an earlier version may read the values, and not ask for their lengths.
        if type(length) == 'table' then break end
        if length > LONGEST_VALUE then return nil end
    end
    local found = redis.pcall('HMGET', position, unpack(fields))
    if found.err and string.find(found.err, 'WRONGTYPE', 1, true) then return nil end
    return found
end

-- Returns what a position remembers of the epochs before, newest first; else what `values_of` does.
local function past_of(position)
    local found, past = values_of(position, PAST), {}
    if not found or found.err then return found end
    for _, text in ipairs(found) do
        if not text then break end
        past[#past + 1] = text
    end
    return past
end

-- Returns the field `m` of a position; false if there is none, and nothing of one that is too long.
local function emptied_at(position)
    local length = redis.pcall('HSTRLEN', position, 'm')
    if type(length) == 'table' then return length end
    return length > LONGEST_VALUE and '' or redis.pcall('HGET', position, 'm')
end

local NEWEST = {'epoch', 'offset', 't', 'run'}

-- Returns epoch and offset, and the time and the process of the newest event; nil if there is no position, and false if it is
-- not readable. Returns an error table first if Redis refuses the read.
local function position_of(key)
    local found = values_of(key, NEWEST)
    if not found then return false end
    if found.err then return found end
    local epoch, offset = found[1], found[2]
    if not epoch and not offset then return nil end
    if not epoch or not offset or #epoch > 64 or not string.find(epoch, '^%w+$') then return false end
    if #offset > 16 or not string.find(offset, '^%d+$') or tonumber(offset) > MOST then return false end
    local run = found[4] ~= '' and found[4] or nil
    return epoch, tonumber(offset), tonumber(found[3] or nil), run
end

-- Ends the epoch if another process has written the newest event: this one may lack events that clients know, and must not
-- give their offsets to others in the same epoch. The offsets go on in the epoch `fresh`, and nothing is lost to those that
-- stand where the old one has ended. Returns the epoch that holds, or an error table; false if the position is not readable.
local function epoch_here(position, epoch, offset, run, fresh)
    local here = process()
    if not here or here == run then return epoch end
    -- A position of an earlier version has no process, and none of a user that may not ask.
    local changed = {'HSET', position, 'run', here}
    if run then
        local past = past_of(position)
        if not past then return false end
        if past.err then return past end
        table.insert(past, 1, epoch .. ' ' .. number(offset))
        for i, field in ipairs(PAST) do
            if not past[i] then break end
            -- What this epoch has lost of the epochs before is lost in them, too.
            local ended, last, lost = string.match(past[i], '^(%w+) (%d+)(.*)$')
            if ended and tonumber(last) > offset then past[i] = ended .. ' ' .. number(offset) .. lost end
            changed[#changed + 1] = field
            changed[#changed + 1] = past[i]
        end
        changed[#changed + 1] = 'epoch'
        changed[#changed + 1] = fresh
    end
    local moved = redis.pcall(unpack(changed))
    if type(moved) == 'table' then return moved end
    return run and fresh or epoch
end

-- Returns the time of an entry; nil if it is not one of a history.
local function time_of(entry)
    local fields = entry[2]
    for i = 1, #fields, 2 do
        if fields[i] == 't' then return tonumber(fields[i + 1]) end
    end
end

local function is_old(entry, oldest) return (time_of(entry) or 0) <= oldest end

-- Returns true if an entry is larger than one of a history can be. Each read of it would stop Redis again.
local function is_oversized(entry)
    local bytes = 0
    if #entry[2] > MOST_TEXTS then return true end
    for _, text in ipairs(entry[2]) do bytes = bytes + #text end
    return bytes > LONGEST_EVENT + LONGEST_VALUE
end

-- Removes keys. Redis stands still while it clears a large one with DEL.
local function remove(...)
    local gone = redis.pcall('UNLINK', ...)
    -- Rights from an earlier version have DEL alone.
    return type(gone) == 'table' and redis.pcall('DEL', ...) or gone
end

-- Removes entries that are too old, from the oldest one on. It fetches them one by one, and none behind one that is oversized.
local function trim(history, oldest)
    for _ = 1, TRIMMED do
        local entry = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
        local oversized = entry and is_oversized(entry)
        if not entry or not (oversized or is_old(entry, oldest)) then return end
        redis.call('XDEL', history, entry[1])
        if oversized then return end
    end
end

-- Adds an event to a history; without an event its offset stays empty. Returns epoch, offset and its time in milliseconds, or an
-- error table; then nothing was added. A history that cannot take the next offset (another type, foreign entries) begins again in the epoch `fresh`.
-- Gateways are told on the channel `gateways` of a position that is not readable.
local function append(history, position, fresh, size, ttl, gateways, event)
    local now = milliseconds()
    local epoch, offset, before, run = position_of(position)
    if type(epoch) == 'table' then return epoch end
    -- Not between two events of a busy group: the question would cost a third of the whole.
    if epoch and not (run and before and now >= before and now - before < TAKE_OVER) then
        epoch = epoch_here(position, epoch, offset, run, fresh)
        if type(epoch) == 'table' then return epoch end
    end
    if epoch == false then redis.call('PUBLISH', gateways, '1 u') end
    local added, begun
    for _ = 1, 2 do
        if not epoch then
            local gone = remove(history, position)
            if type(gone) == 'table' then return gone end
            epoch, offset, begun = fresh, 0, true
        end
        added = not event
            or redis.pcall('XADD', history, 'MAXLEN', '=', size, number(offset + 1) .. '-0', 'e', event, 't', number(now))
        if type(added) ~= 'table' or not added.err then break end
        local foreign = string.find(added.err, 'WRONGTYPE', 1, true) or string.find(added.err, 'equal or smaller', 1, true)
            or string.find(added.err, 'exhausted', 1, true)
        if not foreign then return added end
        epoch = nil
    end
    if type(added) == 'table' and added.err then return added end
    local moved
    if begun then
        moved = redis.pcall('HSET', position, 'epoch', epoch, 'offset', '1', 't', number(now), 'run', process() or '')
    else
        moved = redis.pcall('HSET', position, 'offset', number(offset + 1), 't', number(now))
    end
    if type(moved) == 'table' then
        if event then redis.pcall('XDEL', history, added) end
        return moved
    end
    -- Not each time: the look at the oldest entry would cost a sixth of the whole.
    if offset % TRIMMED_EVERY == 0 then trim(history, now - ttl) end
    redis.call('PEXPIRE', history, number(ttl))
    redis.call('PEXPIRE', position, life(ttl))
    return epoch, offset + 1, now
end

-- Returns an error if the user may not run a command, before anything is written. Redis 6 cannot tell.
local function not_allowed(...)
    if redis.acl_check_cmd and not redis.acl_check_cmd(...) then
        return redis.error_reply("NOPERM The user executing the script can't run " .. (...) .. ' on the keys and channels of a history')
    end
end

-- The key of a call. It is none of KEYS: while a slot of a cluster moves, Redis refuses a script of which some keys are there and
-- others are not, and this one mostly is not. What such a node refuses then is not remembered.
local function call_key(history, id) return history .. ':call:' .. id end

-- Returns the position that an earlier call with this id has recorded at; nil if there was none.
local function recorded_before(history, id)
    local at = id and redis.pcall('GETRANGE', call_key(history, id), 0, LONGEST_VALUE)
    return type(at) == 'string' and #at <= LONGEST_VALUE and string.find(at, '^%w+ %d+$') and at or nil
end

-- Remembers the call, if it has an id. Without memory for that it may be carried out twice, which is no reason to refuse it.
local function remember(history, id, at)
    if id then redis.pcall('SET', call_key(history, id), at, 'PX', REMEMBERED) end
end

-- Records an event and publishes it: first its position for gateways, then the event as it is for gateways and consumers.
-- Returns `EPOCH OFFSET`, or an error; then nothing was published. With the id of a call that has recorded, nothing happens again.
-- KEYS: history, position. ARGV: epoch of a new history, size, life of an event in milliseconds, channel of the gateways,
-- channel of the group, event, and the id of the call if it has one.
local function record(keys, argv)
    local refused = not_allowed('PUBLISH', argv[4], '') or not_allowed('PEXPIRE', keys[1], '1')
        or not_allowed('PUBLISH', argv[5], '')
    if refused then return refused end
    local before = recorded_before(keys[1], argv[7])
    if before then return before end
    local epoch, offset = append(keys[1], keys[2], argv[1], argv[2], tonumber(argv[3]), argv[4], argv[6])
    if type(epoch) == 'table' then return epoch end
    local at = epoch .. ' ' .. number(offset)
    redis.call('PUBLISH', argv[4], '1 r ' .. at)
    redis.call('PUBLISH', argv[5], argv[6])
    remember(keys[1], argv[7], at)
    return at
end
