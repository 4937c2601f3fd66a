//! A tenant's database as Django's migrations make it, with three users in it, on each of the three engines.

use std::path::Path;
use std::sync::Arc;

use sqlx::{Connection, Executor, MySqlConnection, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::django::Django;
use super::mariadb::MariaDbServer;
use super::postgres::PostgresServer;
use super::scratch;

/// Id of `alice`, active, in every database made here.
pub(crate) const ALICE: &str = "1";
/// Id of `bob`, active.
pub(crate) const BOB: &str = "2";
/// Id of `carol`, who is not active.
pub(crate) const CAROL: &str = "3";

/// One database; clones are the same one.
#[derive(Clone)]
pub(crate) struct Database {
    url: String,
    _dir: Option<Arc<TempDir>>,
}

impl Database {
    /// On the shared PostgreSQL.
    pub(crate) async fn postgres() -> Self {
        static TEMPLATE: OnceCell<String> = OnceCell::const_new();
        let server = PostgresServer::shared().await;
        let template = TEMPLATE
            .get_or_init(async || {
                let name = server.create_database("template0").await;
                fill(&server.url(&name)).await;
                name
            })
            .await;
        Self::at(server.url(&server.create_database(template).await))
    }

    /// On the shared MariaDB.
    pub(crate) async fn mariadb() -> Self {
        let server = MariaDbServer::shared().await;
        let url = server.url(&server.create_database().await);
        fill(&url).await;
        Self::at(url)
    }

    /// A SQLite file.
    pub(crate) async fn sqlite() -> Self {
        static TEMPLATE: OnceCell<TempDir> = OnceCell::const_new();
        let template = TEMPLATE
            .get_or_init(async || {
                let dir = sqlite_dir();
                fill(&sqlite_url(dir.path())).await;
                dir
            })
            .await;
        let dir = sqlite_dir();
        std::fs::copy(template.path().join("db"), dir.path().join("db"))
            .expect("the template is there");
        Self {
            url: sqlite_url(dir.path()),
            _dir: Some(Arc::new(dir)),
        }
    }

    /// Whatever is at `url`.
    pub(crate) fn at(url: String) -> Self {
        Self { url, _dir: None }
    }

    /// As `users.database` takes it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Runs one statement.
    pub(crate) async fn execute(&self, statement: &str) {
        let sql = sqlx::AssertSqlSafe(statement.to_owned());
        let url = &self.url;
        let done = if url.starts_with("postgres") {
            let mut connection = PgConnection::connect(url).await.expect("it answers");
            connection.execute(sql).await.map(drop)
        } else if url.starts_with("mysql") {
            let mut connection = MySqlConnection::connect(url).await.expect("it answers");
            connection.execute(sql).await.map(drop)
        } else {
            let mut connection = SqliteConnection::connect(url).await.expect("it opens");
            connection.execute(sql).await.map(drop)
        };
        done.unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
}

/// A lock on a table. It ends with this.
#[allow(dead_code, reason = "each connection is held, and closed by its drop")]
pub(crate) enum TableLock {
    Postgres(PgConnection),
    MySql(MySqlConnection),
    Sqlite(SqliteConnection),
}

impl Database {
    /// Keeps everyone else from reading the users, as a long migration does.
    pub(crate) async fn lock_users(&self) -> TableLock {
        self.lock("auth_user").await
    }

    /// Keeps everyone else from reading a table.
    pub(crate) async fn lock(&self, table: &str) -> TableLock {
        let (url, locked) = (&self.url, "the table can be locked");
        if url.starts_with("postgres") {
            let mut connection = PgConnection::connect(url).await.expect("it answers");
            let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(lock))
                .execute(&mut connection)
                .await
                .expect(locked);
            TableLock::Postgres(connection)
        } else if url.starts_with("mysql") {
            let mut connection = MySqlConnection::connect(url).await.expect("it answers");
            let lock = format!("LOCK TABLES {table} WRITE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(lock))
                .execute(&mut connection)
                .await
                .expect(locked);
            TableLock::MySql(connection)
        } else {
            let mut connection = SqliteConnection::connect(url).await.expect("it opens");
            let lock = "BEGIN EXCLUSIVE";
            sqlx::raw_sql(lock)
                .execute(&mut connection)
                .await
                .expect(locked);
            TableLock::Sqlite(connection)
        }
    }
}

fn sqlite_dir() -> TempDir {
    scratch("sqlite")
}

fn sqlite_url(dir: &Path) -> String {
    format!("sqlite://{}", dir.join("db").display())
}

/// Real migrations, and users made by Django.
async fn fill(url: &str) {
    let django = Django::at(url).start().await;
    django.migrate().await;
    for (name, id, active) in [
        ("alice", ALICE, true),
        ("bob", BOB, true),
        ("carol", CAROL, false),
    ] {
        let user = django.create_user(name, active).await;
        assert_eq!(user.id, id, "the first users of a new table");
    }
    django.disconnect().await;
}
