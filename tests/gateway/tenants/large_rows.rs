//! Users whose rows in the tenant's database are 100 MB long, or hundreds of thousands.

use std::sync::Arc;

use crate::problem::Problem;
use crate::support::process::Program;
use crate::support::{Database, Gateway, Tenant, django, gateway};

const CHAT: &str = "/ws/chat/lobby/";
/// Three columns have one name, so that the last counts.
const OF_ONE_NAME: &str = "
    WITH known AS (SELECT * FROM people)
    SELECT known.*, notes.*, known.id AS id
    FROM known LEFT JOIN notes ON notes.user_id = known.id -- all of them
    WHERE known.id IN (:user_ids);";
const QUERY: &str = "
    SELECT people.*, notes.note, notes.more
    FROM people LEFT JOIN notes ON notes.user_id = people.id WHERE people.id IN (:user_ids)";
/// Users with one row of a few bytes.
const GOOD: [&str; 3] = ["1", "2", "3"];
/// Users with a column of 100 MB.
const LONG: [&str; 5] = ["11", "12", "13", "14", "15"];
/// A user with 300,000 rows.
const MANY: &str = "21";
/// Memory by which the process may grow.
const GROWTH: u64 = 40 << 20;

/// Returns the statements that make the tables, without what is long.
fn tables(text: &str) -> Vec<String> {
    let mut statements = vec![
        "CREATE TABLE people (id integer PRIMARY KEY, is_active integer)".to_owned(),
        format!("CREATE TABLE notes (user_id integer, id integer, note {text}, more {text})"),
    ];
    for id in [&GOOD[..], &LONG, &[MANY]].concat() {
        statements.push(format!("INSERT INTO people VALUES ({id}, 1)"));
    }
    for id in GOOD {
        statements.push(format!("INSERT INTO notes VALUES ({id}, 0, 'short', NULL)"));
    }
    statements
}

async fn refused(gateway: &Gateway, tenant: &Tenant, user: &str) {
    let dial = gateway.replica().dial(tenant, CHAT);
    let refused = dial.token(&tenant.token(user)).refused().await;
    Problem::new(503, "unavailable").is(&refused, &tenant.name);
}

/// Before: each statement held all that the database sent, and the process of all tenants grew to 830 MB. A user without a
/// long column was refused together with those who have one, once the memory or the time ran out.
async fn rows_are_bounded(database: &Database, query: &str, long: &[&'static str]) {
    let gateway = Arc::new(
        gateway()
            .tenant("acme")
            .with("users.query", query)
            .with("users.negative_ttl", "10m")
            .with("users.local_ttl", "0s")
            .users(database)
            .tenant("other")
            .start()
            .await,
    );
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    let mut sockets = Vec::new();
    for tenant in [acme, other] {
        let dial = replica.dial(tenant, CHAT);
        sockets.push(dial.token(&tenant.token("1")).open().await);
    }
    let before = replica.process.peak_memory();
    let unusable: Vec<_> = [long, &[MANY]].concat();
    let refusals = unusable.iter().map(|user| {
        let user = *user;
        let gateway = gateway.clone();
        tokio::spawn(async move { refused(&gateway, gateway.named("acme"), user).await })
    });
    let refusals: Vec<_> = refusals.collect();
    // In the statements of the others, and in those after them.
    for _ in 0..3 {
        for user in &GOOD[1..] {
            let dial = replica.dial(acme, CHAT);
            sockets.push(dial.token(&acme.token(user)).open().await);
            let dial = replica.dial(other, CHAT);
            sockets.push(dial.token(&other.token("2")).open().await);
        }
    }
    for task in refusals {
        task.await.unwrap();
    }
    for socket in &mut sockets {
        socket.ping().await;
    }
    let queries = async || {
        let metrics = replica.metrics().await;
        metrics.value("lockgate_user_queries_total", &[])
    };
    let asked = queries().await;
    for user in &unusable {
        refused(&gateway, acme, user).await;
    }
    assert_eq!(queries().await, asked, "they are remembered");
    let output = gateway.output();
    for (why, users) in [("more than 64 KiB", long), ("two rows", &[MANY])] {
        let told = output.lines().filter(|line| line.contains(why));
        assert_eq!(told.count(), users.len(), "{why}: {output}");
    }
    let grown = replica.process.peak_memory().saturating_sub(before);
    println!("{} MiB more memory", grown >> 20);
    assert!(grown < GROWTH, "{} MiB", grown >> 20);
}

async fn on_postgres() -> Database {
    let database = Database::postgres().await;
    for statement in tables("text") {
        database.execute(&statement).await;
    }
    for (at, id) in LONG.iter().enumerate() {
        // Stored compressed to a hundredth, and not.
        let value = match at {
            0..3 => "repeat('x', 104857600)",
            _ => "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 3276800) AS n)",
        };
        let sql = format!("INSERT INTO notes VALUES ({id}, 0, {value}, NULL)");
        database.execute(&sql).await;
    }
    let many = "INSERT INTO notes SELECT 21, n, 'x', NULL FROM generate_series(1, 300000) AS n";
    database.execute(many).await;
    database.execute("CREATE INDEX ON notes (user_id)").await;
    database
}

#[tokio::test]
async fn rows_of_100_mb_on_postgres_cost_no_memory_and_no_other_user() {
    rows_are_bounded(&on_postgres().await, QUERY, &LONG).await;
}

#[tokio::test]
async fn nor_do_they_behind_a_transaction_pooler() {
    let database = on_postgres().await;
    let pooled = format!("{}?statement-cache-capacity=0", database.url());
    // The server fetches a long value to measure it, where a name does not tell one column from another.
    rows_are_bounded(&Database::at(pooled), OF_ONE_NAME, &LONG[2..4]).await;
}

#[tokio::test]
async fn rows_of_100_mb_on_mariadb_cost_no_memory_and_no_other_user() {
    let database = Database::mariadb().await;
    for statement in tables("longtext") {
        database.execute(&statement).await;
    }
    // Holds for connections after it.
    let longer = "SET GLOBAL max_allowed_packet = 1073741824";
    database.execute(longer).await;
    for (at, id) in LONG.iter().enumerate() {
        let values = match at {
            0..3 => "REPEAT('x', 104857600), NULL",
            _ => "REPEAT('x', 52428800), REPEAT('y', 52428800)",
        };
        let sql = format!("INSERT INTO notes VALUES ({id}, 0, {values})");
        database.execute(&sql).await;
    }
    let many = "INSERT INTO notes SELECT 21, seq, 'x', NULL FROM seq_1_to_300000";
    database.execute(many).await;
    let index = "CREATE INDEX of_user ON notes (user_id)";
    database.execute(index).await;
    // It reads a value to measure it, which takes a busy machine a while.
    rows_are_bounded(&database, OF_ONE_NAME, &LONG[2..4]).await;
}

/// The library of this test cannot write such values either.
const WRITE: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
for id in (11, 12, 13, 14, 15):
    db.execute('INSERT INTO notes VALUES (?, 0, ?, NULL)', (id, 'x' * 104857600))
db.executemany('INSERT INTO notes VALUES (21, ?, ?, NULL)', ((n, 'x') for n in range(300000)))
db.execute('CREATE INDEX of_user ON notes (user_id)')
db.commit()
";

#[tokio::test]
async fn rows_of_100_mb_on_sqlite_cost_no_memory_and_no_other_user() {
    let database = Database::sqlite().await;
    for statement in tables("text") {
        database.execute(&statement).await;
    }
    let path = database.url().strip_prefix("sqlite://").unwrap();
    let path = path.split('?').next().unwrap();
    Program::new("python", django::python())
        .args(["-c", WRITE, path])
        .run();
    rows_are_bounded(&database, QUERY, &LONG).await;
}

/// Before: the statement around the query had each column as often as there are columns, which were 0.9 GB of text.
#[tokio::test]
async fn a_view_of_thousands_of_columns_costs_no_memory_and_no_other_tenant() {
    let database = Database::mariadb().await;
    for statement in tables("longtext") {
        database.execute(&statement).await;
    }
    let view = |columns: &str| {
        format!(
            "CREATE OR REPLACE VIEW wide AS SELECT people.*, {columns} FROM people JOIN notes ON notes.user_id = people.id"
        )
    };
    database.execute(&view("notes.note AS first")).await;
    let gateway = gateway()
        .tenant("acme")
        .with("users.query", "SELECT * FROM wide WHERE id IN (:user_ids)")
        .users(&database)
        .tenant("other")
        .start()
        .await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    let dial = replica.dial(acme, CHAT);
    let mut socket = dial.token(&acme.token("1")).open().await;
    let before = replica.process.peak_memory();
    let columns: Vec<_> = (0..4000).map(|at| format!("notes.more AS c{at}")).collect();
    // The column that is gone has the others read at once.
    database.execute(&view(&columns.join(", "))).await;
    refused(&gateway, acme, "2").await;
    socket.ping().await;
    let dial = replica.dial(other, CHAT);
    dial.token(&other.token("1")).open().await.ping().await;
    let grown = replica.process.peak_memory().saturating_sub(before);
    assert!(grown < GROWTH, "{} MiB", grown >> 20);
}
