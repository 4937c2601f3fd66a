//! Errors of Redis about keys of a layer: whether one concerns a key alone, and the action to take.

use redis::RedisError;

use crate::error::ErrorKind;
use crate::stores::redis::{RedisStore, error_kind};

/// Returns true if an error concerns one key, and not the server or the link.
pub(super) fn concerns_a_key(error: &RedisError) -> bool {
    let text = || error.to_string().contains("WRONGTYPE");
    error_kind(error) == ErrorKind::Permission || error.code() == Some("WRONGTYPE") || text()
}

/// Returns the action on a refusal of keys with this pattern, which need these rights.
pub(super) fn remedy(
    store: &RedisStore,
    error: &RedisError,
    rights: &str,
    pattern: &str,
) -> String {
    let user = store.url().username().unwrap_or("default");
    match error_kind(error) {
        ErrorKind::Permission => format!("grant them: ACL SETUSER {user} {rights} ~{pattern}"),
        _ => format!("look at the server, and at what others write to {pattern}"),
    }
}
