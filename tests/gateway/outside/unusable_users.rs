//! Users whose rows in the database cannot be used.

use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::gateway;

const CHAT: &str = "/ws/chat/lobby/";

/// The ids of the table are 32-bit integers, and the query a tenant's own: before, the check of its columns left a statement
/// behind that could read none of them.
///
/// Before: each handshake of such a user was a statement and a warning, 10 of each for alice and for bob.
#[tokio::test]
async fn a_user_with_two_rows_or_too_large_columns_is_told_once_and_remembered() {
    const QUERY: &str = "
        SELECT id, is_active, CASE id WHEN 2 THEN repeat('x', 70000) ELSE '' END AS note
        FROM auth_user WHERE id IN (:user_ids)
        UNION ALL SELECT id, is_active, '' FROM auth_user WHERE id = 1";
    let gateway = gateway()
        .tenant("acme")
        .with("users.query", QUERY)
        .with("users.negative_ttl", "10m")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let queries = async || {
        let metrics = replica.metrics().await;
        metrics.value("lockgate_user_queries_total", &[])
    };
    let refused = async |user: &str| {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(user));
        Problem::new(503, "unavailable").is(&dial.refused().await, &tenant.name);
    };
    let before = queries().await;
    for (user, why) in [(ALICE, "two rows"), (BOB, "more than 64 KiB")] {
        for _ in 0..10 {
            refused(user).await;
        }
        replica.logged(why).await;
        let told = gateway.output().matches(why).count();
        assert_eq!(told, 1, "{}", gateway.output());
    }
    assert_eq!(queries().await - before, 2.0);
    // An operator who has mended the rows need not wait.
    let path = format!("/v1/tenants/{}/users/{ALICE}/invalidate", tenant.name);
    let answer = replica.api(&gateway.api_key, "POST", &path, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let before = queries().await;
    refused(ALICE).await;
    assert_eq!(queries().await - before, 1.0);
}

/// Before: the log told that the database does not answer, and that it answers again, for each part of such a statement.
#[tokio::test]
async fn a_user_with_a_value_that_is_slow_to_read_is_no_outage_of_the_database() {
    const QUERY: &str = "
        SELECT id, is_active, CASE id WHEN 2 THEN pg_sleep(30)::text END AS note
        FROM auth_user WHERE id IN (:user_ids)";
    let gateway = gateway()
        .tenant("acme")
        .with("users.query", QUERY)
        .with("users.negative_ttl", "10m")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let dial = replica.dial(tenant, CHAT).token(&tenant.token(BOB));
    Problem::new(503, "unavailable").is(&dial.refused().await, &tenant.name);
    replica.logged("A user cannot be used").await;
    gateway.open(CHAT).await;
    let told = gateway.output();
    assert!(!told.contains("does not answer"), "{told}");
}
