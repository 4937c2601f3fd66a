//! Users while tables change, and beside rows that cannot be read, on PostgreSQL and MariaDB.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::error::StoreError;
use lockgate::ids::UserId;
use lockgate::stores::database::{Database, FetchedUsers, UserQuery};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection};

use super::database::{Setup, mariadb, postgres, run_mysql, run_postgres};
use super::servers::Server;

/// Statements in flight while a column goes.
const IN_FLIGHT: i64 = 3;
const DEADLINE: Duration = Duration::from_secs(20);

struct UserReader {
    database: Arc<Database>,
    query: Arc<UserQuery>,
}

impl UserReader {
    fn new(setup: &Setup) -> Self {
        Self {
            database: setup.database(),
            query: Arc::new(UserQuery::new(&setup.users, &setup.token).unwrap()),
        }
    }

    async fn fetch(&self, ids: &[&str]) -> Result<FetchedUsers, StoreError> {
        let ids: Vec<UserId> = ids.iter().map(|id| (*id).into()).collect();
        self.database.fetch_users(&self.query, &ids).await
    }

    /// Returns the ids that were found, and those of rows that could not be read.
    async fn found(&self, ids: &[&str]) -> (Vec<String>, Vec<String>) {
        let fetched = self.fetch(ids).await.unwrap();
        let mut found: Vec<_> = fetched.rows.iter().map(|row| row.id.to_string()).collect();
        found.sort();
        let unreadable = fetched.unreadable.iter().map(|(id, _)| id.to_string());
        (found, unreadable.collect())
    }
}

async fn execute_postgres(conn: &mut PgConnection, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql).execute(conn).await.unwrap();
}

/// Before: the first of several statements in flight was sent again, and the others failed.
#[tokio::test]
async fn each_statement_in_flight_survives_a_migration_on_postgres() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    let plain = Setup::new(&url);
    let query = "SELECT * FROM auth_user WHERE id IN (:user_ids)";
    for (setup, column) in [
        (plain.clone(), "first_name"),
        (plain.clone().query(query), "last_name"),
    ] {
        let mut holder = PgConnection::connect(&url).await.unwrap();
        let mut watcher = PgConnection::connect(&url).await.unwrap();
        let reader = UserReader::new(&setup);
        reader.database.check_columns(&reader.query).await.unwrap();
        let reader = Arc::new(reader);
        execute_postgres(&mut holder, "BEGIN; LOCK TABLE auth_user").await;
        let asked = begin(&reader);
        until_waiting(async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            sqlx::query_scalar(sql)
                .fetch_one(&mut watcher)
                .await
                .unwrap()
        })
        .await;
        let drop = format!("ALTER TABLE auth_user DROP COLUMN {column}; COMMIT");
        execute_postgres(&mut holder, &drop).await;
        all_found(asked).await;
    }
}

#[tokio::test]
async fn each_statement_in_flight_survives_a_migration_on_mariadb() {
    let server = Server::mariadb();
    let url = mariadb(&server).await;
    let plain = Setup::new(&url);
    let query = "SELECT * FROM auth_user WHERE id IN (:user_ids)";
    for (setup, column) in [
        (plain.clone(), "first_name"),
        (plain.clone().query(query), "last_name"),
    ] {
        let mut holder = MySqlConnection::connect(&url).await.unwrap();
        let mut watcher = MySqlConnection::connect(&url).await.unwrap();
        let reader = UserReader::new(&setup);
        reader.database.check_columns(&reader.query).await.unwrap();
        let reader = Arc::new(reader);
        let lock = sqlx::raw_sql("LOCK TABLES auth_user WRITE");
        lock.execute(&mut holder).await.unwrap();
        let asked = begin(&reader);
        until_waiting(async || {
            let sql = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%lock'";
            sqlx::query_scalar(sql)
                .fetch_one(&mut watcher)
                .await
                .unwrap()
        })
        .await;
        let drop = format!("ALTER TABLE auth_user DROP COLUMN {column}; UNLOCK TABLES");
        let drop = sqlx::raw_sql(AssertSqlSafe(drop));
        drop.execute(&mut holder).await.unwrap();
        all_found(asked).await;
    }
}

type Asked = tokio::task::JoinHandle<Result<FetchedUsers, StoreError>>;

fn begin(reader: &Arc<UserReader>) -> Vec<Asked> {
    let asked = (0..IN_FLIGHT).map(|_| {
        let reader = reader.clone();
        tokio::spawn(async move { reader.fetch(&["1"]).await })
    });
    asked.collect()
}

async fn until_waiting(mut waiting: impl AsyncFnMut() -> i64) {
    let deadline = Instant::now() + DEADLINE;
    while waiting().await < IN_FLIGHT {
        assert!(Instant::now() < deadline, "the statements do not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn all_found(asked: Vec<Asked>) {
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().rows.len(), 1);
    }
}

/// Makes a function that sleeps for the user 2 as long as `condition` holds.
async fn slow_user(url: &str, condition: &str) -> UserReader {
    let function = format!(
        "CREATE SEQUENCE IF NOT EXISTS tries; ALTER SEQUENCE tries RESTART; \
         CREATE OR REPLACE FUNCTION slow(id integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
         IF id = 2 AND nextval('tries') {condition} THEN PERFORM pg_sleep(30); END IF; RETURN true; END $$"
    );
    run_postgres(url, &[function]).await;
    let query = "SELECT id, slow(id) AS is_active FROM auth_user WHERE id IN (:user_ids)";
    UserReader::new(&Setup::new(url).query(query))
}

/// Before: a slow user stood in a statement for each halving, 2 s each, and the others of the statement waited for all of them. A
/// user who was alone, and met a lock that lasted longer than a statement may, counted as unusable.
#[tokio::test]
async fn a_slow_user_costs_one_more_statement_and_a_lock_costs_none() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    let ids: Vec<String> = (1..=64).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let reader = slow_user(&url, "> 0").await;
    let (found, unreadable) = reader.found(&ids).await;
    assert_eq!((found, unreadable), (strings(&["1", "3"]), strings(&["2"])));
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let tries: i64 = sqlx::query_scalar("SELECT last_value FROM tries")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(tries, 2);
    let reader = slow_user(&url, "= 1").await;
    assert_eq!(reader.found(&["2"]).await, (strings(&["2"]), strings(&[])));
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Before: the names were forgotten at the first change for good, and not known where the database was away at the start. A long
/// value was then fetched to be measured.
#[tokio::test]
async fn postgres_measures_the_columns_by_name_after_a_migration_too() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    let query = "SELECT * FROM auth_user WHERE id IN (:user_ids)";
    let reader = UserReader::new(&Setup::new(&url).query(query));
    let mut conn = PgConnection::connect(&url).await.unwrap();
    for (column, gone) in [("first_name", "nothing"), ("last_name", "first_name")] {
        assert_eq!(reader.found(&["1"]).await.0, ["1"]);
        let size = |column: &str| format!("'%pg_column_size(\"lockgate.rows\".\"{column}\")%'");
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE {} AND query NOT LIKE {})",
            size(column),
            size(gone)
        );
        let is_measured = sqlx::query_scalar(AssertSqlSafe(sql));
        let is_measured: bool = is_measured.fetch_one(&mut conn).await.unwrap();
        assert!(is_measured, "{column}");
        let drop = format!("ALTER TABLE auth_user DROP COLUMN {column}");
        run_postgres(&url, &[drop]).await;
    }
}

/// Before: a subquery in a column ran for each time that the frame names it.
#[tokio::test]
async fn mariadb_computes_a_column_once() {
    let server = Server::mariadb();
    let url = mariadb(&server).await;
    run_mysql(
        &url,
        &[
            "CREATE TABLE calls (number integer)".into(),
            "CREATE FUNCTION note() RETURNS longtext MODIFIES SQL DATA BEGIN \
             INSERT INTO calls VALUES (1); RETURN 'x'; END"
                .into(),
        ],
    )
    .await;
    let mut conn = MySqlConnection::connect(&url).await.unwrap();
    for (query, calls) in [
        (
            "SELECT id, is_active, note() AS a, note() AS b FROM auth_user WHERE id IN (:user_ids)",
            2,
        ),
        (
            "SELECT id, is_active, note() AS a, note() AS a FROM auth_user WHERE id IN (:user_ids)",
            4,
        ),
    ] {
        let reader = UserReader::new(&Setup::new(&url).query(query));
        assert_eq!(reader.found(&["1"]).await.0, ["1"]);
        let made: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM calls")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(made, calls, "{query}");
    }
}

#[tokio::test]
async fn an_option_that_no_subquery_has_is_named() {
    let server = Server::mariadb();
    let url = mariadb(&server).await;
    let query = "SELECT SQL_NO_CACHE id, is_active FROM auth_user WHERE id IN (:user_ids)";
    let problem = Setup::new(&url).query(query).problem().await;
    assert!(
        problem.starts_with("users.query cannot stand in a subquery: ")
            && problem.contains("SQL_CALC_FOUND_ROWS"),
        "{problem}"
    );
}

/// Before: the connection went back to the pool with the rows that were still coming.
#[tokio::test]
async fn a_connection_with_rows_behind_one_that_cannot_be_decoded_ends() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    // A cast that checks nothing lets a row be no JSON.
    let cast = "CREATE CAST (text AS json) WITHOUT FUNCTION";
    run_postgres(&url, &[cast.into()]).await;
    let query = "SELECT id, is_active, ('{' || username)::json AS note FROM auth_user WHERE id IN (:user_ids)";
    let mut setup = Setup::new(&url).query(query);
    setup.users.pool.max = 1;
    let reader = UserReader::new(&setup);
    assert!(reader.fetch(&["9"]).await.unwrap().rows.is_empty());
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let of = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%lockgate.row%' AND pid <> pg_backend_pid()";
    let before: i32 = sqlx::query_scalar(of).fetch_one(&mut conn).await.unwrap();
    let (found, unreadable) = reader.found(&["1", "2", "3"]).await;
    assert_eq!((found.len(), unreadable.len()), (0, 3));
    let deadline = Instant::now() + DEADLINE;
    let lives = async |conn: &mut PgConnection| {
        let pids: Vec<i32> = sqlx::query_scalar(of).fetch_all(conn).await.unwrap();
        pids.contains(&before)
    };
    while lives(&mut conn).await {
        assert!(Instant::now() < deadline, "the connection stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reader.fetch(&["9"]).await.unwrap().rows.is_empty());
}

/// Before: what the other half had shown was dropped with the answer that did not come, and all users were refused.
#[tokio::test]
async fn users_who_were_read_are_kept_when_a_later_part_fails() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    let function = "CREATE FUNCTION trying(id integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
         IF id = 2 THEN RETURN 1 / (id - 2) > 0; END IF; \
         IF id = 1 THEN RAISE EXCEPTION 'as a server with a fault'; END IF; RETURN true; END $$";
    run_postgres(&url, &[function.into()]).await;
    let query = "SELECT id, trying(id) AS is_active FROM auth_user WHERE id IN (:user_ids) ORDER BY id DESC";
    let reader = UserReader::new(&Setup::new(&url).query(query));
    let fetched = reader.fetch(&["1", "2", "3"]).await.unwrap();
    let ids = |users: &[(UserId, StoreError)]| {
        let ids = users.iter().map(|(id, _)| id.to_string());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(fetched.rows[0].id.to_string(), "3");
    assert_eq!(ids(&fetched.unreadable), ["2"]);
    assert_eq!(ids(&fetched.unanswered), ["1"]);
    assert!(reader.fetch(&["1"]).await.is_err());
}

/// Before: a value that the driver cannot decode was an outage for all users of the statement.
#[tokio::test]
async fn a_value_that_cannot_be_decoded_costs_its_user_alone() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    let cast = "CREATE CAST (text AS json) WITHOUT FUNCTION";
    run_postgres(&url, &[cast.into()]).await;
    let query = "SELECT id, is_active, (CASE id WHEN 2 THEN '{' ELSE '1' END)::text::json AS note \
                 FROM auth_user WHERE id IN (:user_ids)";
    let reader = UserReader::new(&Setup::new(&url).query(query));
    let (found, unreadable) = reader.found(&["1", "2", "3"]).await;
    assert_eq!((found, unreadable), (strings(&["1", "3"]), strings(&["2"])));
}

/// Returns the fields of user 1 beside these values.
async fn fields_beside(url: &str, values: &str) -> String {
    let query = format!("SELECT id, is_active, {values} FROM auth_user WHERE id IN (:user_ids)");
    let reader = UserReader::new(&Setup::new(url).query(&query));
    let fetched = reader.fetch(&["1", "2", "3"]).await.unwrap();
    assert_eq!(fetched.rows.len(), 3, "{values}: {:?}", fetched.unreadable);
    let row = fetched.rows.iter().find(|row| row.id.to_string() == "1");
    row.unwrap().fields.to_string()
}

#[tokio::test]
async fn values_at_the_edges_of_their_types_are_read_on_mariadb() {
    let server = Server::mariadb();
    let url = mariadb(&server).await;
    run_mysql(
        &url,
        &[
            "SET GLOBAL sql_mode = ''".into(),
            "CREATE TABLE edges (d date, t datetime(6), s timestamp NULL, h time(6), n decimal(65, 30), b bit(64), y year, \
             u bigint unsigned, f double, g float, o tinyint(1) unsigned, e enum('a', 'b'), p point, i inet6)"
                .into(),
        ],
    )
    .await;
    let nines = "9".repeat(35);
    run_mysql(
        &url,
        &[format!(
            "INSERT INTO edges VALUES ('0000-00-00', '0000-00-00', '0000-00-00', '-838:59:59.999999', {nines}, b'1', 0, \
             18446744073709551615, -1.7976931348623157e308, 3.4e38, 255, 'none', POINT(1, 1), '::'), \
             ('2026-02-00', '2026-00-00', NULL, '00:00:00', -{nines}, ~0, 2155, 0, 5e-324, 1e-45, 0, 'a', NULL, NULL), \
             ('9999-12-31', '9999-12-31 23:59:59.999999', '2038-01-19 03:14:07', '838:59:59', 0, 0, 1901, 1, 0, 0, 1, '', NULL, NULL)"
        )],
    )
    .await;
    for place in 0..3 {
        let edge = |name: &str| format!("(SELECT {name} FROM edges LIMIT {place}, 1) AS {name}");
        let names = "d t s h n b y u f g o e p i".split(' ');
        let values = names.map(edge).collect::<Vec<_>>().join(", ");
        fields_beside(&url, &values).await;
    }
    let dates = "(SELECT d FROM edges LIMIT 1) AS d, (SELECT t FROM edges LIMIT 1) AS t";
    assert_eq!(
        fields_beside(&url, dates).await,
        r#"{"id":1,"is_active":true,"d":null,"t":null}"#
    );
}

#[tokio::test]
async fn values_at_the_edges_of_their_types_are_read_on_postgres() {
    let server = Server::postgres();
    let url = postgres(&server).await;
    let values = r#"'infinity'::date AS a, '-infinity'::timestamptz AS b, '4713-01-01 BC'::date AS c, '294276-12-31'::timestamp AS d,
        'NaN'::numeric AS e, repeat('9', 1000)::numeric AS f, 'Infinity'::float8 AS g, '{"\ud800": 1e999}'::json AS h,
        repeat('[', 2000)::text || repeat(']', 2000) AS i, (repeat('[', 2000) || repeat(']', 2000))::json AS j, '\x00ff'::bytea AS k,
        '178000000 years'::interval AS l, '{{NULL}}'::text[] AS m, 'empty'::int4range AS n, '24:00:00'::time AS o"#;
    let fields = fields_beside(&url, values).await;
    assert!(
        fields.starts_with(
            r#"{"id":1,"is_active":true,"a":"infinity","b":"-infinity","c":"4713-01-01 BC""#
        ),
        "{fields}"
    );
}
