//! The Lua scripts that run inside Redis, for steps that must be atomic.

/// Puts back the messages that were being read when their reader went away, as Channels' own script does, up to a number, which a
/// reader never takes. A message that is too long is removed. Fails if the key holds another type.
/// KEYS: messages, in flight. ARGV: number, bytes of the longest message.
pub(super) const RECOVER: &str = "\
redis.call('ZCARD', KEYS[1])
local put_back = 0
for i = 1, tonumber(ARGV[1]) do
    local popped = redis.call('ZPOPMIN', KEYS[2])
    if #popped == 0 then break end
    if #popped[1] <= tonumber(ARGV[2]) then
        redis.call('ZADD', KEYS[1], popped[2], popped[1])
        put_back = put_back + 1
    end
end
redis.call('DEL', KEYS[2])
return put_back";

/// Takes the oldest messages, up to a number and to an approximate number of bytes. They stay in flight until the next call
/// or a DEL, so that a lost answer loses no message. A message that is too long is removed and not sent. Returns the number
/// of messages before, the number of those that were too long, then each other message and its score.
/// KEYS: messages, in flight. ARGV: number, bytes, life of the messages in flight in seconds, bytes of the longest message.
pub(super) const TAKE: &str = "\
redis.call('DEL', KEYS[2])
local taken, bytes, long = {redis.call('ZCARD', KEYS[1]), 0}, 0, 0
for i = 1, tonumber(ARGV[1]) do
    if bytes >= tonumber(ARGV[2]) then break end
    local popped = redis.call('ZPOPMIN', KEYS[1])
    if #popped == 0 then break end
    if #popped[1] > tonumber(ARGV[4]) then
        long = long + 1
    else
        redis.call('ZADD', KEYS[2], popped[2], popped[1])
        bytes = bytes + #popped[1]
        taken[#taken + 1] = popped[1]
        taken[#taken + 1] = popped[2]
    end
end
taken[2] = long
if #taken > 2 then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return taken";

/// Adds the member for the history of a group, or renews it. If it was not there any more, what was sent meanwhile is in no mailbox:
/// the mark of the mailbox goes, which shows that (`mailbox.lua`), and the answer is 1.
/// KEYS: group, mailbox. ARGV: score, member, the latest score that has lapsed, mark.
pub(super) const JOIN_HISTORY: &str = "\
local score = redis.call('ZSCORE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
if score and tonumber(score) > tonumber(ARGV[3]) then return 0 end
redis.call('ZREM', KEYS[2], ARGV[4])
return 1";

/// Removes lapsed members of a group and returns the number of those that are left, then their names, up to a number. A name
/// that is too long for a channel is removed, so that it is met once. The steps are small, since Redis cannot leave it out.
/// KEYS: group. ARGV: the latest score that has lapsed, number, bytes of the longest name.
pub(super) const MEMBERS: &str = "\
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[1])
local names, at, step = {redis.call('ZCARD', KEYS[1])}, 0, nil
repeat
    step = redis.call('ZRANGE', KEYS[1], at, at + 19)
    for _, name in ipairs(step) do
        if #name <= tonumber(ARGV[3]) then
            names[#names + 1] = name
            at = at + 1
        else
            redis.call('ZREM', KEYS[1], name)
        end
    end
until #step < 20 or at >= tonumber(ARGV[2])
return names";

/// Adds a message to every key that has room for it; returns the number of keys without room. It has the effect of the
/// script of `channels_redis.core.RedisChannelLayer.group_send`.
/// KEYS: message keys. ARGV: their messages, their capacities, the score, life of the messages in seconds.
pub(super) const SEND_TO_GROUP: &str = "\
local full, score, expiry = 0, ARGV[#ARGV - 1], ARGV[#ARGV]
for i = 1, #KEYS do
    if redis.call('ZCOUNT', KEYS[i], '-inf', '+inf') < tonumber(ARGV[i + #KEYS]) then
        redis.call('ZADD', KEYS[i], score, ARGV[i])
        redis.call('EXPIRE', KEYS[i], expiry)
    else
        full = full + 1
    end
end
return full";

/// Removes expired messages from a key and adds one; returns 0 if the key is full. It does the work of the four commands of
/// `channels_redis.core.RedisChannelLayer.send`, but cannot exceed the capacity as they can.
/// KEYS: message key. ARGV: message, capacity, score, life of the messages in seconds, the latest score that has expired.
pub(super) const SEND: &str = "\
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[5])
if redis.call('ZCOUNT', KEYS[1], '-inf', '+inf') >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1";

/// Returns the number of messages under all keys, and the score of the oldest one, empty without any. A message is never sent,
/// since it may be long.
/// KEYS: messages of each channel.
pub(super) const UNREAD: &str = "\
local count, oldest = 0, ''
for _, key in ipairs(KEYS) do
    count = count + redis.call('ZCARD', key)
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
    if first and (oldest == '' or tonumber(first) < tonumber(oldest)) then oldest = first end
end
return {count, oldest}";
