//! The users of the floor: one task reads those of the connects that wait in one statement, with the columns that the gateway
//! reads, and writes their records to Redis with a time to live, which no connect waits for.

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

/// The most users of a statement: the connects of the load that are under way at a time.
const MOST: usize = 64;
/// Seconds for which Redis keeps a record.
const KEPT: u64 = 300;

/// A user whose connect waits.
type Wanted = (i64, oneshot::Sender<()>);

/// Hands users to the task that reads them.
#[derive(Clone)]
pub(super) struct Users(mpsc::UnboundedSender<Wanted>);

impl Users {
    /// Opens the database, and starts the task.
    pub(super) async fn open(url: &str, link: MultiplexedConnection) -> Result<Self> {
        let database = SqliteConnection::connect(url).await?;
        let (sender, wanted) = mpsc::unbounded_channel();
        tokio::spawn(read_all(database, link, wanted));
        Ok(Self(sender))
    }

    /// Returns once the user is read. Fails if there is none.
    pub(super) async fn read(&self, id: i64) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.0.send((id, done))?;
        answer.await.context("no such user")
    }
}

async fn read_all(
    mut database: SqliteConnection,
    link: MultiplexedConnection,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
) -> Result<()> {
    let mut batch = Vec::with_capacity(MOST);
    while wanted.recv_many(&mut batch, MOST).await > 0 {
        let marks = vec!["?"; batch.len()].join(", ");
        let statement = format!(
            "SELECT id, username, first_name, last_name, email, is_active, is_staff, is_superuser \
             FROM auth_user WHERE id IN ({marks})"
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for (id, _) in &batch {
            query = query.bind(*id);
        }
        let rows = query.fetch_all(&mut database).await?;
        let mut writes = redis::pipe();
        for row in &rows {
            let (id, record) = record(row)?;
            let key = format!("bench:floor:user:{id}");
            writes.set_ex(key, record, KEPT).ignore();
            if let Some(at) = batch.iter().position(|(wanted, _)| *wanted == id) {
                // A connect that was cut waits for nothing.
                batch.swap_remove(at).1.send(()).ok();
            }
        }
        batch.clear();
        let mut link = link.clone();
        tokio::spawn(async move { writes.exec_async(&mut link).await });
    }
    Ok(())
}

/// Returns the id of a user, and the record as JSON text.
fn record(row: &SqliteRow) -> Result<(i64, String)> {
    let text = |name: &str| row.try_get::<String, _>(name);
    let truth = |name: &str| row.try_get::<bool, _>(name);
    let id: i64 = row.try_get("id")?;
    let record = json!({
        "id": id,
        "username": text("username")?,
        "first_name": text("first_name")?,
        "last_name": text("last_name")?,
        "email": text("email")?,
        "is_active": truth("is_active")?,
        "is_staff": truth("is_staff")?,
        "is_superuser": truth("is_superuser")?,
    });
    Ok((id, record.to_string()))
}
