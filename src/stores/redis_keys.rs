//! Every key and channel that Lockgate owns in Redis, readable beside `redis-cli`. Public: back ends may write some.
//!
//! Everything of a tenant lies under `lockgate:TENANT:`; what has an empty tenant belongs to the deployment. No two
//! tenants share a key: a tenant's name holds no `:`.

use crate::ids::{Jti, ReplicaId, TenantId, UserId};

fn of_tenant(tenant: &TenantId, rest: &str) -> String {
    format!("lockgate:{tenant}:{rest}")
}

/// What every key of a tenant's denylist begins with.
pub fn denylist_prefix(tenant: &TenantId) -> String {
    of_tenant(tenant, "deny:")
}

/// A denied token. String, any value; lives until no replica would take the token anyway.
pub fn deny_jti(tenant: &TenantId, jti: &Jti) -> String {
    of_tenant(tenant, &format!("deny:jti:{jti}"))
}

/// A user's cut-off. String, Unix seconds; lives for `denylist.keep`.
pub fn deny_user(tenant: &TenantId, user: &UserId) -> String {
    of_tenant(tenant, &format!("deny:user:{user}"))
}

/// The tenant's cut-off. String, Unix seconds; lives for `denylist.keep`.
pub fn deny_all(tenant: &TenantId) -> String {
    of_tenant(tenant, "deny:all")
}

/// A cached user record. String, JSON; lives for `users.stale_ttl`, absent users for `users.negative_ttl`.
pub fn user(tenant: &TenantId, user: &UserId) -> String {
    of_tenant(tenant, &format!("user:{user}"))
}

/// The generation of a user's record. String, random text; lives for twice `users.stale_ttl`.
pub fn user_generation(tenant: &TenantId, user: &UserId) -> String {
    of_tenant(tenant, &format!("usergen:{user}"))
}

/// What the keys of all generations of a tenant begin with.
pub fn generations(tenant: &TenantId) -> String {
    of_tenant(tenant, "usergen:")
}

/// `suspended`, or absent. String without expiry.
pub fn state(tenant: &TenantId) -> String {
    of_tenant(tenant, "state")
}

/// The answer given under an idempotency key. String; lives for a day.
pub fn idempotency(tenant: &TenantId, key: &str) -> String {
    of_tenant(tenant, &format!("idem:{key}"))
}

/// The channel of commands to all replicas.
pub fn control(tenant: &TenantId) -> String {
    of_tenant(tenant, "control")
}

/// The ids of the replicas that serve the tenant, or did; those that live have an entry in the registry. Set, without
/// expiry.
pub fn replicas(tenant: &TenantId) -> String {
    of_tenant(tenant, "replicas")
}

/// The same of the whole deployment, in `[redis]`.
pub const REPLICAS: &str = "lockgate::replicas";

/// The mark whose absence tells that Redis lost its data. String without expiry: random text, or one of the two below.
pub const EPOCH: &str = "lockgate::epoch";

/// What [`EPOCH`] begins with once a replica found its mark gone: `lost:UNIX:RANDOM`.
pub const LOST: &str = "lost:";

/// What an operator lets [`EPOCH`] begin with who knows of the loss: `ack:UNIX`.
pub const ACKNOWLEDGED: &str = "ack:";

/// The channel of commands of the deployment to all replicas.
pub const DEPLOYMENT_CONTROL: &str = "lockgate::control";

/// A replica's entry in the registry.
pub fn replica(replica: &ReplicaId) -> String {
    format!("lockgate::replica:{replica}")
}

/// The channel of answers to a replica.
pub fn reply(replica: &ReplicaId) -> String {
    format!("lockgate::reply:{replica}")
}

/// The channel, and for the layer `core` the sorted set, on which a replica proves that what it writes comes back.
pub fn canary(replica: &ReplicaId) -> String {
    format!("lockgate::canary:{replica}")
}

/// The pattern of all canary channels, as an ACL rule takes it.
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
            (replica(&replica_id), "lockgate::replica:r1"),
            (reply(&replica_id), "lockgate::reply:r1"),
            (canary(&replica_id), "lockgate::canary:r1"),
        ] {
            assert_eq!(key, expected);
        }
    }
}
