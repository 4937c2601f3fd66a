//! A database that is up and keeps everyone waiting, as during a long migration.

use std::time::{Duration, Instant};

use crate::support::{Database, Gateway, PATIENCE, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";

/// The most that a handshake may take whose user is at hand: half a second for the database, and a busy machine. Before:
/// 4.0 s (SQLite), 2.0 s (PostgreSQL, MariaDB).
const AT_ONCE: Duration = Duration::from_millis(1800);

async fn lookups(gateway: &Gateway, result: &str) -> f64 {
    let labels = [
        ("tenant", gateway.tenant().name.as_str()),
        ("result", result),
    ];
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_user_lookups_total", &labels)
}

async fn stale_users_are_served_at_once(database: Database) {
    let gateway = gateway()
        .tenant("acme")
        .users(&database)
        .with("users.cache_ttl", "1s")
        .with("users.local_ttl", "1s")
        .start()
        .await;
    gateway.open(CHAT).await;
    let lock = database.lock_users().await;
    let mut longest = Duration::ZERO;
    eventually(PATIENCE, "stale records are served", async || {
        let began = Instant::now();
        drop(gateway.open(CHAT).await);
        longest = longest.max(began.elapsed());
        let served = lookups(&gateway, "stale").await;
        if served >= 5.0 { Ok(()) } else { Err(served) }
    })
    .await;
    assert!(longest < AT_ONCE, "{}: {longest:?}", database.url());
    let up = [("dependency", "database")];
    let replica = gateway.replica();
    // Before: 1 for as long as SQLite was locked.
    replica
        .metric("lockgate_dependency_up", &up, |up| up == 0.0)
        .await;
    drop(lock);
    let before = lookups(&gateway, "database").await;
    eventually(PATIENCE, "the database is asked again", async || {
        drop(gateway.open(CHAT).await);
        let now = lookups(&gateway, "database").await;
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
    replica
        .metric("lockgate_dependency_up", &up, |up| up == 1.0)
        .await;
}

#[tokio::test]
async fn a_locked_database_delays_no_user_whose_record_is_at_hand() {
    for database in [
        Database::sqlite().await,
        Database::postgres().await,
        Database::mariadb().await,
    ] {
        stale_users_are_served_at_once(database).await;
    }
}
