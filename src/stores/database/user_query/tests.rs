//! Statements for tables and queries, ids of each type, and rows.

use super::*;
use crate::config::Secret;
use crate::stores::database::value::SqlValue;

fn query(
    url: &str,
    change: impl Fn(&mut UsersConfig, &mut TokenConfig),
) -> Result<UserQuery, Faults> {
    let mut users = UsersConfig {
        database: Some(Secret::from(url)),
        ..UsersConfig::default()
    };
    let mut token = TokenConfig::default();
    change(&mut users, &mut token);
    UserQuery::new(&users, &token)
}

/// Before: a field that nothing returns was found by the first handshake, which was refused without a reason.
#[test]
fn a_field_can_be_one_that_the_query_names() {
    let by = |sql: &str| {
        let made = query("sqlite://x", |users, _| users.query = Some(sql.to_owned()));
        made.expect("valid")
    };
    let named = by("SELECT id, is_active, u.team AS \"crew\" FROM u WHERE id IN (:user_ids)");
    for (name, may) in [
        ("id", true),
        ("team", true),
        ("Crew", true),
        ("email", false),
        ("user_ids", false),
        ("password", false),
    ] {
        assert_eq!(named.may_return(name), may, "{name}");
    }
    let all = by("SELECT * FROM u WHERE id IN (:user_ids)");
    assert!(all.may_return("email") && !all.may_return("PASSWORD"));
    let commented = by("SELECT id FROM u WHERE id IN (:user_ids) -- email *");
    assert!(!commented.may_return("email"));
    let table = query("sqlite://x", |_, token| {
        token.user_id_field = "badge".into()
    });
    let table = table.expect("valid");
    assert!(table.may_return("email") && table.may_return("badge"));
    assert!(!table.may_return("team"));
    let columns = ["id", "badge", "team", "password"].map(str::to_owned);
    assert_eq!(table.fields_of(columns.to_vec()), ["id", "badge"]);
    assert_eq!(all.fields_of(columns.to_vec()), ["id", "badge", "team"]);
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn tables_are_named_by_identifiers_only() {
    for good in ["auth_user", "_x", "Auth.User1"] {
        assert!(
            query("postgres://h/d", |users, _| users.table = good.into()).is_ok(),
            "{good}"
        );
    }
    for bad in [
        "", "1a", "a b", "a.b.c", ".a", "a.", "a\"b", "a;--", "é", "a\n",
    ] {
        let refused = query("mysql://h/d", |users, _| users.table = bad.into());
        assert_eq!(refused.unwrap_err().0[0].key, "users.table", "{bad}");
    }
    let refused = query("sqlite://f", |_, token| token.user_id_field = "a b".into());
    assert_eq!(refused.unwrap_err().0[0].key, "token.user_id_field");
}

#[test]
fn a_query_uses_its_user_ids() {
    let with = |sql: &str| query("sqlite://f", |users, _| users.query = Some(sql.into()));
    assert!(with("SELECT * FROM u WHERE id IN (:user_ids)").is_ok());
    assert!(with("SELECT * FROM u WHERE id IN (':user_ids')").is_err());
    assert!(with("SELECT * FROM u WHERE id = :user_id OR id IN (:user_ids)").is_err());
    assert!(query("oracle://h/d", |_, _| ()).is_err());
}

#[test]
fn a_table_gives_the_columns_it_has() {
    let query = query("postgres://h/d", |users, token| {
        users.table = "app.people".into();
        token.user_id_field = "username".into();
        token.check_revoke_token = true;
    });
    let query = query.unwrap();
    assert_eq!(query.missing(&strings(&["id"])), Some("username"));
    assert_eq!(query.missing(&strings(&["username"])), Some("is_active"));
    let columns = strings(&["bio", "password", "is_active", "username", "email"]);
    assert_eq!(query.missing(&columns), None);
    let (statement, _) = query.table_statement(&columns, Some("text")).unwrap();
    let (sql, _) = statement.render(|_| vec![Bind::Int(1)]);
    assert_eq!(
        sql,
        r#"SELECT "username", "email", "is_active", "password" FROM "app"."people" WHERE "username" IN ($1)"#
    );
    let (statement, _) = query.table_statement(&columns, Some("bigint")).unwrap();
    let (sql, _) = statement.render(|_| vec![Bind::Int(1); 2]);
    assert!(
        sql.ends_with(r#" WHERE "username" = ANY (ARRAY[$1, $2]::bigint[])"#),
        "{sql}"
    );
}

#[test]
fn ids_are_bound_by_their_type() {
    let binds = |url: &str, id_type, id: &str| {
        let query = query(url, |users, _| users.id_type = id_type).unwrap();
        query.binds(&id.into())
    };
    let text = |text: &str| Bind::Text(text.into());
    assert_eq!(binds("sqlite://f", IdType::Int, "-7"), [Bind::Int(-7)]);
    assert_eq!(binds("sqlite://f", IdType::Int, "9223372036854775808"), []);
    assert_eq!(binds("postgres://f", IdType::Text, "a\0"), []);
    assert_eq!(binds("mysql://f", IdType::Text, "a\0"), [text("a\0")]);
    let id = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
    assert_eq!(
        binds("mysql://f", IdType::Uuid, id),
        [text("7d4448409dc011d1b2455ffdce74fad2"), text(id)]
    );
    assert_eq!(
        binds("postgres://f", IdType::Uuid, id),
        [Bind::Uuid(Uuid::try_parse(id).unwrap())]
    );
    assert_eq!(binds("mysql://f", IdType::Uuid, "x"), []);
}

#[test]
fn the_password_leaves_only_its_digest() {
    let row = vec![
        ("id".into(), SqlValue::Number("7".into())),
        ("Password".into(), SqlValue::Text("secret".into())),
        ("password".into(), SqlValue::Text("secret".into())),
        ("is_active".into(), SqlValue::Number("1".into())),
    ];
    let on = query("sqlite://f", |_, token| token.check_revoke_token = true).unwrap();
    let user = on.row_reader().read(&row).unwrap().unwrap();
    assert_eq!(&*user.fields, r#"{"id":7,"is_active":1}"#);
    assert_eq!(user.is_active, Some(true));
    let digest = u128::from_be_bytes(user.password_digest.unwrap());
    assert_eq!(format!("{digest:032X}"), "5EBE2294ECD0E0F08EAB7690D2A6EE69");
    let off = query("sqlite://f", |_, _| ()).unwrap();
    assert_eq!(
        off.row_reader()
            .read(&row)
            .unwrap()
            .unwrap()
            .password_digest,
        None
    );
}

#[test]
fn a_null_is_neither_active_nor_inactive() {
    let query = query("sqlite://f", |_, _| ()).unwrap();
    let row = vec![
        ("id".into(), SqlValue::Number("7".into())),
        ("is_active".into(), SqlValue::Null),
    ];
    assert_eq!(
        query.row_reader().read(&row).unwrap().unwrap().is_active,
        None
    );
    assert_eq!(
        query.row_reader().read(&row[..1].to_vec()),
        Err("is_active")
    );
}

/// Before: the first of several statements in flight dropped the plan, and the others that had the same one were not sent again.
#[test]
fn a_plan_is_forgotten_by_each_statement_that_has_it() {
    let query = query("postgres://h/d", |_, _| ()).unwrap();
    let (statement, _) = query.table_statement(&strings(&["id"]), None).unwrap();
    let old = query.keep_plan(statement.clone(), &[]);
    assert!(query.forget_plan(&old) && query.plan().is_none());
    assert!(query.forget_plan(&old), "another statement in flight");
    let new = query.keep_plan(statement, &[]);
    assert!(query.forget_plan(&old));
    assert!(Arc::ptr_eq(&query.plan().unwrap(), &new));
}

/// Before: on PostgreSQL the columns of a query were described at the start alone.
#[test]
fn a_statement_is_described_again_after_a_minute() {
    const SQL: &str = "SELECT * FROM u WHERE id IN (:user_ids)";
    for (url, sql, again) in [
        ("postgres://h/d", Some(SQL), true),
        ("postgres://h/d", None, false),
        ("mysql://h/d", Some(SQL), true),
        ("mysql://h/d", None, true),
        ("sqlite://f", Some(SQL), false),
    ] {
        let query = query(url, |users, _| users.query = sql.map(str::to_owned)).unwrap();
        let made = query.table_statement(&strings(&["id"]), None);
        let statement = made.map(|(statement, _)| statement);
        let statement = statement.or_else(|| query.statement()).unwrap();
        let described_at = Instant::now().checked_sub(DESCRIBE_EVERY).unwrap();
        *query.plan.lock() = Some(Arc::new(UserPlan {
            described_at,
            ..UserPlan::new(statement, &[], "id", query.dialect)
        }));
        assert_eq!(query.plan().is_none(), again, "{url} {sql:?}");
    }
}
