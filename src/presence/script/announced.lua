-- Reads which users the members of a group know of: those who are there and those who linger.
-- KEYS: index, users. Returns: epoch ('': none), number of the last notice, their ids.
local epoch, number, ids = '', 0, {}
if redis.call('TYPE', KEYS[1]).ok == 'hash' then
    local found = redis.call('HMGET', KEYS[1], 'epoch', 'changes')
    if found[1] and string.match(found[1], '^%x+$') then epoch = found[1] end
    number = tonumber(found[2] or 0) or 0
    if number < 0 or number > 2 ^ 52 then number = 0 end
end
if redis.call('TYPE', KEYS[2]).ok == 'zset' then ids = redis.call('ZRANGE', KEYS[2], 0, -1) end
return { epoch, number, ids }
