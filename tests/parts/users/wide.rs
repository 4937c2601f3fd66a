//! Statements of very many columns, on each database.

use lockgate::stores::database::UserQuery;
use tempfile::TempDir;

use super::database::{Setup, mariadb, postgres, run_mysql, run_postgres, sqlite};
use super::servers::Server;

/// The most columns of a statement.
const MOST: usize = 1024;
/// Long texts beside two other columns.
const LONG: usize = MOST - 2;

/// Returns the statements that make a table with a long text, and a view of it with `count` columns of that text.
fn view(text: &str, count: usize) -> Vec<String> {
    let columns: Vec<_> = (0..count).map(|at| format!("note AS note{at}")).collect();
    let columns = columns.join(", ");
    vec![
        format!("CREATE TABLE notes (id integer PRIMARY KEY, is_active boolean, note {text})"),
        "INSERT INTO notes VALUES (1, true, 'short'), (2, true, 'short')".to_owned(),
        format!("CREATE VIEW people AS SELECT id, is_active, {columns} FROM notes"),
        "CREATE VIEW more AS SELECT people.*, id AS another FROM people".to_owned(),
    ]
}

fn of(url: &str, from: &str) -> Setup {
    let query = format!("SELECT * FROM {from} WHERE id IN (:user_ids)");
    Setup::new(url).query(&query)
}

async fn holds(url: &str) {
    let people = of(url, "people");
    assert_eq!(people.problem().await, "none");
    let query = UserQuery::new(&people.users, &people.token).unwrap();
    let ids = ["1".into(), "2".into()];
    let database = people.database();
    let fetched = database.fetch_users(&query, &ids).await.unwrap();
    assert_eq!(fetched.rows.len(), 2);
    let fields = &fetched.rows[0].fields;
    assert_eq!(fields.matches(":\"short\"").count(), LONG);
    let told = format!("users.query returns {} columns, more than {MOST}", MOST + 1);
    let problem = of(url, "more").problem().await;
    assert!(problem.contains(&told), "{problem}");
}

/// Before: the frame of 1,000 long columns was a statement of 56 MB, and that of a view with 4,000 ended the process.
#[tokio::test]
async fn a_statement_may_have_very_many_columns_and_no_more_on_mariadb() {
    let server = Server::mariadb();
    let url = mariadb(&server).await;
    run_mysql(&url, &view("longtext", LONG)).await;
    holds(&url).await;
}

#[tokio::test]
async fn and_on_postgres() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    run_postgres(&url, &view("text", LONG)).await;
    holds(&url).await;
}

#[tokio::test]
async fn and_on_sqlite() {
    let dir = TempDir::new().unwrap();
    let url = sqlite(&dir, &view("text", LONG)).await;
    holds(&url).await;
}
