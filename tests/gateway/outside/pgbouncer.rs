//! PgBouncer in transaction mode, with the plain URL that works without it.

use sqlx::{Connection, Executor};

use crate::operations::doctor::{findings, is};
use crate::support::database::{ALICE, BOB};
use crate::support::pgbouncer::PgBouncer;
use crate::support::{Database, gateway};

const CHAT: &str = "/ws/chat/lobby/";
/// Lets connects pass that ask for a time limit, and forgets it.
const IGNORING: &str = "ignore_startup_parameters = extra_float_digits, options";
/// The time limit of statements, in milliseconds.
const LIMIT_MS: u32 = 2000;
/// The sign of a server that does not know what another one has prepared. It may come first.
const FORGOTTEN: &str = "prepared statement";
const FOUND: &str = "leads through a transaction pooler";

/// Before: the tenant was degraded with `unsupported startup parameter`; and where PgBouncer ignored the parameters, statements
/// that another server had prepared failed.
async fn users_are_read(database: &Database, more: &str, signs: &[&str]) -> PgBouncer {
    let name = database.url().rsplit('/').next().unwrap().to_owned();
    let pooler = PgBouncer::start(more).await;
    let through = Database::at(pooler.url(&name));
    let route = "
        path = 'ws/chat/<slug:room>/'
        groups = ['chat_{room}']
        authorize = 'SELECT 1 FROM auth_user WHERE id = :user_id'
    ";
    let gateway = gateway()
        .without_redis()
        .tenant("table")
        .with("layer.kind", "memory")
        .users(&through)
        .route(route)
        .tenant("query")
        .with("layer.kind", "memory")
        .with(
            "users.query",
            "SELECT id, is_active, email, 1.50 AS price FROM auth_user WHERE id IN (:user_ids)",
        )
        .with("users.local_ttl", "0s")
        .users(&through)
        .route(route)
        .start()
        .await;
    let replica = gateway.replica();
    let path = |tenant: &str, user: &str| format!("/v1/tenants/{tenant}/users/{user}/invalidate");
    for word in ["table", "query"] {
        let tenant = gateway.named(word);
        // More sockets at the same time than the pooler has servers, and each user read again and again.
        for _ in 0..5 {
            for user in [ALICE, BOB] {
                let answer = replica
                    .api(&gateway.api_key, "POST", &path(&tenant.name, user), "")
                    .await;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            let dial = |user| replica.dial(tenant, CHAT).token(&tenant.token(user)).open();
            let opened = tokio::join!(dial(ALICE), dial(BOB), dial(ALICE), dial(BOB), dial(BOB));
            drop(opened);
        }
    }
    let found = replica.logged(FOUND).await;
    let is_told = signs.iter().any(|sign| found.contains(sign));
    assert!(is_told, "{found}");
    for word in ["table", "query"] {
        let subject = format!(
            "database {} of",
            through.url().split(['@', '/']).nth(3).unwrap()
        );
        let found = findings(&gateway.config);
        is(
            &found,
            (&subject, "pooler"),
            "ok",
            "each query is a transaction of its own",
        );
        assert!(
            found.to_string().contains(&gateway.named(word).name),
            "{found}"
        );
    }
    let output = gateway.output();
    assert!(
        !output.contains("does not answer") && !output.contains("degraded"),
        "{output}"
    );
    pooler
}

#[tokio::test]
async fn a_pooler_that_ignores_startup_parameters_is_found_and_used() {
    let database = Database::postgres().await;
    let pooler = users_are_read(
        &database,
        IGNORING,
        &["it ignores the time limit of statements"],
    )
    .await;
    // Before, the first statement after that was prepared by name, on a server that other programs use too.
    let name = database.url().rsplit('/').next().unwrap();
    let url = pooler.url(name) + "?statement-cache-capacity=0";
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    let options = options.extra_float_digits(None);
    // A transaction keeps one of the pooler's two servers.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = sqlx::PgConnection::connect_with(&options).await.unwrap();
        connection.execute(sqlx::raw_sql("BEGIN")).await.unwrap();
        let ask = sqlx::raw_sql("SELECT name FROM pg_prepared_statements");
        let found = connection.fetch_all(ask).await.unwrap();
        assert_eq!(found.len(), 0, "prepared by name");
        held.push(connection);
    }
}

/// The database has the limit that the pooler ignores, so that only the servers that know no prepared statement of an earlier
/// transaction show it.
#[tokio::test]
async fn a_pooler_that_forgets_prepared_statements_is_found_and_used() {
    let database = Database::postgres().await;
    let name = database.url().rsplit('/').next().unwrap();
    let limit = format!("ALTER DATABASE \"{name}\" SET statement_timeout = {LIMIT_MS}");
    database.execute(&limit).await;
    users_are_read(&database, IGNORING, &[FORGOTTEN]).await;
}

#[tokio::test]
async fn a_pooler_that_refuses_startup_parameters_is_found_and_used() {
    let database = Database::postgres().await;
    users_are_read(&database, "", &["unsupported startup parameter"]).await;
}
