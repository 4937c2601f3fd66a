//! The Lua that runs inside Redis: what must happen at once.

/// Puts back what was being read when its reader went away: Channels' own, and in its order. Fails where the key holds
/// something else.
/// KEYS: messages, in flight.
pub(super) const RECOVER: &str = "\
redis.call('ZCARD', KEYS[1])
local left = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for i = #left, 1, -2 do
    redis.call('ZADD', KEYS[1], left[i], left[i - 1])
end
redis.call('DEL', KEYS[2])
return #left / 2";

/// Takes the oldest messages, up to a number and to about so many bytes, and keeps them in flight until the next call or a
/// DEL: an answer that is lost on its way loses nothing. Returns how many there were, then each message and its score.
/// KEYS: messages, in flight. ARGV: number, bytes, seconds that what is in flight lives.
pub(super) const TAKE: &str = "\
redis.call('DEL', KEYS[2])
local taken, bytes = {redis.call('ZCARD', KEYS[1])}, 0
for i = 1, tonumber(ARGV[1]) do
    if bytes >= tonumber(ARGV[2]) then break end
    local popped = redis.call('ZPOPMIN', KEYS[1])
    if #popped == 0 then break end
    redis.call('ZADD', KEYS[2], popped[2], popped[1])
    bytes = bytes + #popped[1]
    taken[#taken + 1] = popped[1]
    taken[#taken + 1] = popped[2]
end
if #taken > 1 then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return taken";

/// Adds a message to every key that has room for it; returns how many had none. With the effect of the script of
/// `channels_redis.core.RedisChannelLayer.group_send`.
/// KEYS: message keys. ARGV: their messages, their capacities, the score, seconds that messages live.
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

/// Adds a message to one key, after those that have expired are gone; returns 0 if it is full. Four commands of
/// `channels_redis.core.RedisChannelLayer.send`, which can overshoot the capacity; this cannot.
/// KEYS: message key. ARGV: message, capacity, score, seconds that messages live, the score that has expired.
pub(super) const SEND: &str = "\
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[5])
if redis.call('ZCOUNT', KEYS[1], '-inf', '+inf') >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1";
