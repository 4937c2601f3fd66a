//! All keys and channels of Lockgate in Redis. They are public: operators read them, and back ends may write some.
//!
//! A tenant's keys begin with `lockgate:TENANT:`, those of the deployment with `lockgate::`. No two tenants share a
//! key, because a tenant's name cannot contain `:`.

use crate::ids::{Jti, ReplicaId, TenantId, UserId};

/// The most bytes of a cut-off: Unix seconds, with a fraction or without.
pub const CUT_OFF_BYTES: usize = 64;

/// The most bytes of a generation, which is a random text.
pub const GENERATION_BYTES: usize = 256;

/// The most bytes of a tenant's state.
pub const STATE_BYTES: usize = 64;

/// The most bytes of the mark [`EPOCH`].
pub const EPOCH_BYTES: usize = 256;

/// The most bytes of an answer that is kept for an idempotency key: 1,000 results of about 100 bytes.
pub const IDEMPOTENCY_BYTES: usize = 256 * 1024;

/// Each handshake makes five keys, so the parts are joined in one allocation and without the formatter.
fn of_tenant(tenant: &TenantId, kind: &str, id: &str) -> String {
    ["lockgate:", tenant.as_str(), ":", kind, id].concat()
}

/// Returns the pattern of all keys, or of all channels, of a tenant.
pub fn all_of(tenant: &TenantId) -> String {
    of_tenant(tenant, "*", "")
}

/// Returns the prefix of all keys of a tenant's denylist.
pub fn denylist_prefix(tenant: &TenantId) -> String {
    of_tenant(tenant, "deny:", "")
}

/// Returns the key of a denied token. String, any value; lives until every replica refuses the token as expired.
pub fn deny_jti(tenant: &TenantId, jti: &Jti) -> String {
    of_tenant(tenant, "deny:jti:", &jti.text())
}

/// Returns the key of a user's cut-off. String, Unix seconds; lives for `denylist.keep`.
pub fn deny_user(tenant: &TenantId, user: &UserId) -> String {
    of_tenant(tenant, "deny:user:", user.as_str())
}

/// Returns the key of the tenant's cut-off. String, Unix seconds; lives for `denylist.keep`.
pub fn deny_all(tenant: &TenantId) -> String {
    of_tenant(tenant, "deny:all", "")
}

/// Returns the key of a cached user record. String, JSON; lives for `users.stale_ttl`, and for `users.negative_ttl`
/// if the user is absent.
pub fn user(tenant: &TenantId, user: &UserId) -> String {
    of_tenant(tenant, "user:", user.as_str())
}

/// Returns the key of the generation of a user's record. String, random text; lives for twice `users.stale_ttl`.
pub fn user_generation(tenant: &TenantId, user: &UserId) -> String {
    of_tenant(tenant, "usergen:", user.as_str())
}

/// Returns the prefix of the keys of all generations of a tenant.
pub fn generations(tenant: &TenantId) -> String {
    of_tenant(tenant, "usergen:", "")
}

/// Returns the key of the tenant's state. String, `suspended` or absent; no expiry.
pub fn state(tenant: &TenantId) -> String {
    of_tenant(tenant, "state", "")
}

/// Returns the key of the answer to a call with an idempotency key. String; lives for a day.
pub fn idempotency(tenant: &TenantId, key: &str) -> String {
    of_tenant(tenant, "idem:", key)
}

/// Returns the key of the names of kept answers. Sorted set by the time of each; lives for a day.
pub fn answers(tenant: &TenantId) -> String {
    of_tenant(tenant, "answers", "")
}

/// Returns the key of the names of kept answers that are long. Sorted set by the time of each; lives for a day.
pub fn long_answers(tenant: &TenantId) -> String {
    of_tenant(tenant, "answers:long", "")
}

/// Returns the key of who is in a group, in the Redis of the layer. `channel` is the layer's own channel of the group. Hash;
/// further keys begin with it. They live for an hour after the last look.
pub fn presence(tenant: &TenantId, channel: &str) -> String {
    of_group(tenant, "presence", channel)
}

/// Returns the key of the replicas that keep presence on a server. Sorted set by the milliseconds until which each lives.
pub fn presence_replicas(tenant: &TenantId) -> String {
    of_tenant(tenant, "presence-replicas", "")
}

/// Returns the channel of commands to all replicas of the tenant.
pub fn control(tenant: &TenantId) -> String {
    of_tenant(tenant, "control", "")
}

/// Returns the key of a group's history, in the Redis of the layer. `channel` is the layer's own channel of the group; as a
/// hash tag it keeps all of a group on one node of a cluster. Stream; lives for the history's `ttl` after the last event. With
/// `:call:ID` behind it, it is that of a call that has recorded. String, the position as `EPOCH OFFSET`; lives for two minutes.
pub fn history(tenant: &TenantId, channel: &str) -> String {
    of_group(tenant, "history", channel)
}

/// Returns the key of the newest position in a group's history. Hash with `epoch` and `offset`; lives for twice the history's
/// `ttl`, and for an hour at least.
pub fn position(tenant: &TenantId, channel: &str) -> String {
    of_group(tenant, "position", channel)
}

/// Returns the patterns of what a record of an event touches: the keys of histories and positions, and the channels that gateways
/// alone hear.
pub fn recording_patterns(tenant: &TenantId) -> ([String; 2], String) {
    let keys = ["history:*", "position:*"].map(|kind| of_tenant(tenant, kind, ""));
    (keys, of_tenant(tenant, "group:*", ""))
}

/// Returns the channel of a group that gateways alone hear.
pub fn group_notices(tenant: &TenantId, channel: &str) -> String {
    of_group(tenant, "group", channel)
}

fn of_group(tenant: &TenantId, kind: &str, channel: &str) -> String {
    ["lockgate:", tenant.as_str(), ":", kind, ":{", channel, "}"].concat()
}

/// Returns the layer's own channel of the group for whose gateways `notices` is.
pub fn channel_of_notices(notices: &[u8]) -> Option<&[u8]> {
    let open = notices.iter().position(|byte| *byte == b'{')?;
    notices[open + 1..].strip_suffix(b"}")
}

/// Returns the key of the rules that back ends read: which groups have a history. String, JSON; no expiry.
pub fn group_rules(tenant: &TenantId) -> String {
    of_tenant(tenant, "groups", "")
}

/// Returns the key of the ids of all replicas that serve or served the tenant. A replica that lives has an entry in the
/// registry. Set; no expiry.
pub fn replicas(tenant: &TenantId) -> String {
    of_tenant(tenant, "replicas", "")
}

/// The key of the ids of all replicas of the deployment, in `[redis]`. Set; no expiry.
pub const REPLICAS: &str = "lockgate::replicas";

/// The key of a mark whose absence means that Redis lost its data. String, random text, or text that begins with
/// [`LOST`] or [`ACKNOWLEDGED`]; no expiry.
pub const EPOCH: &str = "lockgate::epoch";

/// Returns the key of the mark on a shard of a cluster; the number is its hash tag. It is [`EPOCH`] on a single server.
pub fn epoch(shard: Option<u32>) -> String {
    match shard {
        Some(number) => format!("{EPOCH}:{{{number}}}"),
        None => EPOCH.to_owned(),
    }
}

/// The beginning of [`EPOCH`] after a replica found the mark missing: `lost:UNIX:RANDOM`.
pub const LOST: &str = "lost:";

/// The beginning of [`EPOCH`] after an operator has acknowledged the loss: `ack:UNIX`.
pub const ACKNOWLEDGED: &str = "ack:";

/// The channel of commands of the deployment to all replicas.
pub const DEPLOYMENT_CONTROL: &str = "lockgate::control";

/// Returns the key of a replica's entry in the registry.
pub fn replica(replica: &ReplicaId) -> String {
    format!("lockgate::replica:{replica}")
}

/// Returns the channel of answers to a replica.
pub fn reply(replica: &ReplicaId) -> String {
    format!("lockgate::reply:{replica}")
}

/// Returns the name of a replica's canary, with which it checks that its messages come back: a channel, and for the
/// layer `core` a sorted set.
pub fn canary(replica: &ReplicaId) -> String {
    format!("lockgate::canary:{replica}")
}

/// Returns the channel of a replica's canary on a shard of a cluster. The number is its hash tag, chosen so that the shard has its
/// slot.
pub fn shard_canary(replica: &ReplicaId, number: u32) -> String {
    format!("lockgate::canary:{replica}:{{{number}}}")
}

/// A key that is never written. Its deletion has no effect, but a replica refuses it.
pub const NEVER_WRITTEN: &str = "lockgate::never-written";

/// The pattern of all canary channels for an ACL rule.
pub const CANARY_PATTERN: &str = "lockgate::canary:*";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_as_documented() {
        let tenant: TenantId = "acme".parse().unwrap();
        let (id, token) = (UserId::from("7"), Jti::from("a:b"));
        let replica_id = ReplicaId::from("r1");
        for (key, expected) in [
            (denylist_prefix(&tenant), "lockgate:acme:deny:"),
            (deny_jti(&tenant, &token), "lockgate:acme:deny:jti:a:b"),
            (deny_user(&tenant, &id), "lockgate:acme:deny:user:7"),
            (deny_all(&tenant), "lockgate:acme:deny:all"),
            (user(&tenant, &id), "lockgate:acme:user:7"),
            (user_generation(&tenant, &id), "lockgate:acme:usergen:7"),
            (generations(&tenant), "lockgate:acme:usergen:"),
            (state(&tenant), "lockgate:acme:state"),
            (idempotency(&tenant, "k"), "lockgate:acme:idem:k"),
            (control(&tenant), "lockgate:acme:control"),
            (
                history(&tenant, "a__group__b"),
                "lockgate:acme:history:{a__group__b}",
            ),
            (
                position(&tenant, "a__group__b"),
                "lockgate:acme:position:{a__group__b}",
            ),
            (
                group_notices(&tenant, "a__group__b"),
                "lockgate:acme:group:{a__group__b}",
            ),
            (group_rules(&tenant), "lockgate:acme:groups"),
            (
                presence(&tenant, "a:group:b"),
                "lockgate:acme:presence:{a:group:b}",
            ),
            (
                presence_replicas(&tenant),
                "lockgate:acme:presence-replicas",
            ),
            (replica(&replica_id), "lockgate::replica:r1"),
            (reply(&replica_id), "lockgate::reply:r1"),
            (canary(&replica_id), "lockgate::canary:r1"),
            (shard_canary(&replica_id, 7), "lockgate::canary:r1:{7}"),
        ] {
            assert_eq!(key, expected);
        }
        assert_eq!(epoch(None), "lockgate::epoch");
        assert_eq!(epoch(Some(3)), "lockgate::epoch:{3}");
        for channel in ["a__group__b", "a__group__{x}", "{", ""] {
            let notices = group_notices(&tenant, channel).into_bytes();
            assert_eq!(channel_of_notices(&notices), Some(channel.as_bytes()));
        }
    }
}
