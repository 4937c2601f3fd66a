//! What a database says of itself to an operator: its clock, the encryption of the link, what its role may do.
//!
//! Asks the catalogues only. What cannot be known is `None`.

use super::{AskError, Database, Dialect};
use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};

/// Whether the role may change rows anywhere in this database, as PostgreSQL's catalogue has it.
const POSTGRES_WRITES: &str = "SELECT EXISTS (SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' \
     AND (has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') \
          OR has_any_column_privilege(c.oid, 'INSERT, UPDATE')))";

/// Likewise for the account that MySQL and MariaDB took the login for; roles that it may take on are not seen.
const MYSQL_WRITES: &str = "SELECT \
     EXISTS (SELECT 1 FROM information_schema.user_privileges WHERE grantee = me AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'DROP')) \
     OR EXISTS (SELECT 1 FROM information_schema.schema_privileges WHERE grantee = me AND DATABASE() LIKE table_schema \
                AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'DROP')) \
     OR EXISTS (SELECT 1 FROM information_schema.table_privileges WHERE grantee = me AND table_schema = DATABASE() \
                AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'DROP')) \
     FROM (SELECT CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') AS me) AS account";

/// What a database says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DatabaseFacts {
    /// Its clock less ours, in seconds, exact to half a round trip; `None` for SQLite, which has ours.
    pub clock_offset: Option<f64>,
    /// Whether the link is encrypted; `None` for SQLite, which has none.
    pub tls: Option<bool>,
    /// Whether the role may change rows of some table; `None` for SQLite, whose URL and file say it.
    pub may_write: Option<bool>,
}

impl Database {
    /// Asks the server about itself.
    ///
    /// # Errors
    /// [`StoreError`] if it does not answer. What the role may not ask for is unknown.
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
                // It opens its file with the first question.
                self.last_value("SELECT 1").await?;
                return Ok(DatabaseFacts::default());
            }
        };
        // The first question also makes the connection, which is not to be taken for a slow clock.
        let tls = self.last_value(tls).await?;
        let before = UnixTime::now();
        let clock = self.last_value(clock).await?;
        let now = f64::midpoint(before.0, UnixTime::now().0);
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

    /// Returns the last value of the first row; `None` if there is none, or the server refuses the statement.
    async fn last_value(&self, sql: &str) -> Result<Option<super::value::SqlValue>, StoreError> {
        match self.ask("inspect", sql.to_owned(), Vec::new()).await {
            Ok(rows) => {
                let row = rows.into_iter().next();
                Ok(row.and_then(|mut row| row.pop()).map(|(_, value)| value))
            }
            Err(AskError { error, .. }) => match error.kind {
                ErrorKind::Permission | ErrorKind::Other | ErrorKind::Protocol => Ok(None),
                ErrorKind::Io | ErrorKind::Timeout | ErrorKind::Auth => Err(error),
            },
        }
    }
}
