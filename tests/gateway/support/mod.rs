//! Real servers, real gateways, and clients of both. Nothing here judges the gateway.
//!
//! Servers that several tests can share run once per test process, on a loopback port, in a directory that goes
//! away; each test has a database, a layer prefix and tenant names of its own. Every process ends with the test
//! process, however that ends.

pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod database;
pub(crate) mod django;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod jwks;
pub(crate) mod mariadb;
pub(crate) mod metrics;
pub(crate) mod pgbouncer;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod publisher;
pub(crate) mod redis;
pub(crate) mod replica;
pub(crate) mod sentinel;
pub(crate) mod socket;
pub(crate) mod tenant;
pub(crate) mod token;
pub(crate) mod worker;

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) use database::Database;
pub(crate) use gateway::{Gateway, gateway};
pub(crate) use publisher::Publisher;
pub(crate) use redis::RedisServer;
pub(crate) use tenant::Tenant;

/// The longest wait for a fact that usually holds almost at once; long, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for `future`; panics after `deadline`.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> T {
    match tokio::time::timeout(deadline, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {deadline:?}"),
    }
}

/// Asks every 10 ms until `ask` returns `Ok`; panics after `deadline`, with the last answer.
pub(crate) async fn eventually<T, E: Debug>(
    deadline: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    loop {
        tick.tick().await;
        match ask().await {
            Ok(value) => return value,
            Err(last) if started.elapsed() >= deadline => {
                panic!("{what}: not within {deadline:?}; last: {last:?}")
            }
            Err(_) => {}
        }
    }
}

/// Returns a suffix that no other test of this run uses, short enough for every kind of name.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{:x}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A directory that goes when its owner does. Those of shared servers stay behind, since nothing is dropped when
/// a process ends: the first call of the next test process removes them.
pub(crate) fn scratch(what: &str) -> TempDir {
    const PREFIX: &str = "lockgate-test-";
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        for entry in std::fs::read_dir(std::env::temp_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let owner = name.and_then(|name| name.split('-').next());
            let dead = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            if dead {
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
    });
    TempDir::with_prefix(format!("{PREFIX}{}-{what}-", std::process::id()))
        .expect("a directory can be made")
}
