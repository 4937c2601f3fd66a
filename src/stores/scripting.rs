//! Finds out if a server runs scripts for a login: managed servers may hide EVAL, and a login may lack the right to it.

use redis::{Pipeline, RedisResult, Value};

use super::redis::RedisStore;
use super::redis_role::is_refusal;
use crate::error::StoreError;

/// A script that touches no key.
const PROBE: &str = "return 1";

/// Returns the refusal of a server that runs no scripts for this login, with the command that it refuses; `None` if it runs
/// them.
///
/// # Errors
/// [`StoreError`] if the server does not answer.
pub async fn refusal(store: &RedisStore) -> Result<Option<String>, StoreError> {
    let mut ask = Pipeline::with_capacity(3);
    ask.cmd("EVAL").arg(PROBE).arg(0);
    // Scripts are called by their digest, and loaded where a server does not know them.
    ask.cmd("SCRIPT").arg("LOAD").arg(PROBE);
    ask.cmd("EVALSHA")
        .arg(redis::Script::new(PROBE).get_hash())
        .arg(0);
    let answers: Vec<RedisResult<Value>> = store.query_each("script", &mut ask).await?;
    let commands = ["EVAL", "SCRIPT LOAD", "EVALSHA"].into_iter();
    let refused = commands.zip(answers).find_map(|(command, answer)| {
        let error = answer.err().filter(is_refusal)?;
        Some(format!("{command}: {error}"))
    });
    Ok(refused)
}
