//! Faults of `hurt`'s database, which the server itself makes.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};

use crate::stage::Stage;
use crate::support::postgres::PostgresServer;

/// What goes wrong with a database.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DatabaseFault {
    /// The table of users is locked: every statement waits.
    Locked,
    /// The server refuses the login, and ends its connections.
    Refuses,
    /// The server ends its connections again and again, as in a failover.
    Resets,
}

/// The time between two ends of all connections.
const RESET: Duration = Duration::from_millis(200);

impl DatabaseFault {
    pub(super) async fn begin(self, stage: &mut Stage) {
        let url = stage.sql.as_ref().expect("the row has one").database.url();
        let name = url.rsplit('/').next().expect("it has a name").to_owned();
        let server = PostgresServer::shared().await;
        let admin = PgConnection::connect(&server.url("postgres")).await;
        let mut admin = admin.expect("postgres answers");
        match self {
            Self::Locked => {
                let mut link = PgConnection::connect(url).await.expect("postgres answers");
                let lock = "BEGIN; LOCK TABLE auth_user IN ACCESS EXCLUSIVE MODE";
                link.execute(lock).await.expect("a table can be locked");
                stage.kept.spawn(async move {
                    let _link = link;
                    std::future::pending::<()>().await;
                });
            }
            Self::Refuses => {
                execute(
                    &mut admin,
                    format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS false"#),
                )
                .await;
                execute(&mut admin, terminate(&name)).await;
            }
            Self::Resets => {
                stage.kept.spawn(async move {
                    let mut tick = tokio::time::interval(RESET);
                    loop {
                        tick.tick().await;
                        execute(&mut admin, terminate(&name)).await;
                    }
                });
            }
        }
    }

    /// Gives back what lasts longer than the tasks of the fault.
    pub(super) async fn end(self, stage: &mut Stage) {
        stage.kept.shutdown().await;
        if let Self::Refuses = self {
            let url = stage.sql.as_ref().expect("the row has one").database.url();
            let name = url.rsplit('/').next().expect("it has a name");
            let server = PostgresServer::shared().await;
            let admin = PgConnection::connect(&server.url("postgres")).await;
            let allow = format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS true"#);
            execute(&mut admin.expect("postgres answers"), allow).await;
        }
    }
}

async fn execute(link: &mut PgConnection, statement: String) {
    let done = link.execute(sqlx::AssertSqlSafe(statement.clone())).await;
    done.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

fn terminate(database: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = '{database}' AND pid <> pg_backend_pid()"
    )
}
