//! Caches that clients fill are bounded in bytes and let go.

use futures_util::StreamExt;

use crate::support::database::ALICE;
use crate::support::{Database, gateway};

/// Refused connects, each with another path of 15 KiB.
const PATHS: usize = 2000;

/// Before: each verdict kept its path, 17.5 KB for each refused connect, also after `authorize_ttl`.
#[tokio::test]
async fn verdicts_over_long_paths_are_kept_without_the_paths() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("users.authorize_ttl", "1h")
        .route(
            "path = \"ws/<path:room>/\"\nauthorize = \"SELECT 1 FROM auth_user WHERE id = -1 AND username = :room\"",
        )
        .start()
        .await;
    let replica = gateway.replica();
    let token = gateway.tenant().token(ALICE);
    let refuse = async |numbers: std::ops::Range<usize>| {
        let attempts = numbers.map(async |number| {
            let path = format!("/ws/{number:0>15000}/");
            let dial = || replica.dial(gateway.tenant(), &path).token(&token);
            // On a busy machine the database may answer late, which is 503 and no verdict.
            while dial().refused().await.status != 403 {}
        });
        let attempts = futures_util::stream::iter(attempts).buffer_unordered(2);
        attempts.collect::<()>().await;
    };
    let resident = async || {
        let scrape = replica.metrics().await;
        scrape.value("process_resident_memory_bytes", &[])
    };
    // The first ones pay for what stays: pools, buffers, pages of the allocator.
    refuse(0..500).await;
    let before = resident().await;
    refuse(500..500 + PATHS).await;
    let each = (resident().await - before) / PATHS as f64;
    assert!(each < 4000.0, "{each} bytes");
}
