//! Facts about a database for an operator: its clock, the encryption of the link and the rights of the role.
//!
//! Only the catalogues are read. An unknown fact is `None`.

use super::{AskError, Database, Dialect, Pools};
use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};

/// Asks PostgreSQL's catalogue if the role may change rows anywhere in this database.
const POSTGRES_WRITES: &str = "SELECT EXISTS (SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' \
     AND (has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') \
          OR has_any_column_privilege(c.oid, 'INSERT, UPDATE')))";

/// Asks MySQL or MariaDB the same for the account of the login. Roles that the account may take on are not included.
const MYSQL_WRITES: &str = "SELECT \
     EXISTS (SELECT 1 FROM information_schema.user_privileges WHERE grantee = me AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'DROP')) \
     OR EXISTS (SELECT 1 FROM information_schema.schema_privileges WHERE grantee = me AND DATABASE() LIKE table_schema \
                AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'DROP')) \
     OR EXISTS (SELECT 1 FROM information_schema.table_privileges WHERE grantee = me AND table_schema = DATABASE() \
                AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'DROP')) \
     FROM (SELECT CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') AS me) AS account";

/// The facts about a database.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DatabaseFacts {
    /// The server's clock minus this machine's, in seconds, exact to half a round trip; `None` for SQLite, which has no
    /// clock of its own.
    pub clock_offset: Option<f64>,
    /// True if the link is encrypted; `None` for SQLite, which has no link.
    pub tls: Option<bool>,
    /// True if the role may change rows of some table; `None` for SQLite, whose URL and file decide it.
    pub may_write: Option<bool>,
}

impl Database {
    /// Asks the server for the facts.
    ///
    /// # Errors
    /// [`StoreError`] if it does not answer. A fact that the role may not ask for is unknown.
    pub async fn facts(&self) -> Result<DatabaseFacts, StoreError> {
        let (clock, tls, writes) = match self.dialect() {
            Dialect::Postgres => (
                "SELECT extract(epoch FROM clock_timestamp())::text",
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
                POSTGRES_WRITES,
            ),
            Dialect::MySql => (
                "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS CHAR)",
                "SHOW SESSION STATUS LIKE 'Ssl_cipher'",
                MYSQL_WRITES,
            ),
            Dialect::Sqlite => {
                // The first query opens the file.
                self.last_value("SELECT 1").await?;
                return Ok(DatabaseFacts::default());
            }
        };
        // The first query also connects, so it must not be the one that measures the clock.
        let tls = self.last_value(tls).await?;
        let before = UnixTime::now();
        let clock = self.last_value(clock).await?;
        let now = f64::midpoint(before.0, UnixTime::now().0);
        if let Pools::Postgres(pool) = &self.pools {
            pool.compare_servers(self.endpoint()).await;
        }
        let seconds: Option<f64> = clock.and_then(|clock| clock.as_text()?.parse().ok());
        Ok(DatabaseFacts {
            clock_offset: seconds.map(|seconds| seconds - now),
            tls: match self.dialect() {
                Dialect::MySql => {
                    tls.map(|cipher| cipher.as_text().is_some_and(|name| !name.is_empty()))
                }
                _ => tls.and_then(|tls| tls.as_bool()),
            },
            may_write: self.last_value(writes).await?.and_then(|may| may.as_bool()),
        })
    }

    /// Returns the last value of the first row; `None` if there is no row, or the server refuses the statement.
    async fn last_value(&self, sql: &str) -> Result<Option<super::value::SqlValue>, StoreError> {
        match self.ask("inspect", sql.to_owned(), Vec::new()).await {
            Ok(answer) => {
                let row = answer.rows.into_iter().next();
                Ok(row.and_then(|mut row| row.pop()).map(|(_, value)| value))
            }
            Err(AskError { error, .. }) => match error.kind {
                ErrorKind::Permission | ErrorKind::Other | ErrorKind::Protocol => Ok(None),
                ErrorKind::Io | ErrorKind::Timeout | ErrorKind::Auth => Err(error),
            },
        }
    }
}
