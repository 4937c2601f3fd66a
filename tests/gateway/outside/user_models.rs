//! Each shape of a Django user model: what `lockgate_config` prints for it is served, and its users have sockets.

use serde_json::Value;

use crate::problem::Problem;
use crate::support::django::Django;
use crate::support::mariadb::MariaDbServer;
use crate::support::postgres::PostgresServer;
use crate::support::{Database, gateway, scratch};

const PATH: &str = "/ws/chat/lobby/";

/// What the printed configuration says of tokens and users; hosts, keys and addresses are the test's.
fn printed(model: &Value) -> String {
    let config: toml::Table = text(model, "config").parse().expect("valid TOML");
    let mut tenant = config["tenants"][text(model, "name")].clone();
    let mut kept = toml::Table::new();
    for (name, secret) in [("token", "signing_key"), ("users", "database")] {
        let mut table = tenant[name].as_table_mut().expect("a table").clone();
        assert!(table.remove(secret).is_some(), "{name}.{secret}");
        kept.insert(name.to_owned(), table.into());
    }
    kept.to_string()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    let found = value[name].as_str();
    found.unwrap_or_else(|| panic!("{name} in {value}"))
}

/// A tenant for each model, all in one gateway.
async fn every_model_is_served(url: String) {
    const KEY: &str = "the key of a project with many models of users";
    let django = Django::at(&url).user_models().signing_key(KEY);
    let django = django.start().await;
    let models = django.make_user_models().await;
    django.disconnect().await;
    let database = Database::at(url);
    let mut builder = gateway().set("server.max_database_connections", 50);
    for model in &models {
        builder = builder
            .tenant(text(model, "name"))
            .users(&database)
            .with_toml(&printed(model))
            .with("token.signing_key", KEY)
            .with("users.pool.max", 1);
    }
    let gateway = builder.start().await;
    for model in &models {
        let tenant = gateway.named(text(model, "name"));
        let tokens = &model["tokens"];
        let dial = |kind| {
            let dial = gateway.replica().dial(tenant, PATH);
            dial.token(text(tokens, kind))
        };
        let what = format!("{model:#}\n{}", gateway.output());
        let opened = dial("active").attempt().await;
        assert!(opened.is_ok(), "{:?}: {what}", opened.err());
        let nobody = dial("nobody").refused().await;
        assert_eq!(nobody.status, 401, "{nobody:?}: {what}");
        if tokens["inactive"].is_string() {
            let refused = dial("inactive").refused().await;
            Problem::new(401, "user_inactive").is(&refused, &tenant.name);
        }
    }
}

#[tokio::test]
async fn every_user_model_is_served_from_postgres() {
    let server = PostgresServer::shared().await;
    every_model_is_served(server.url(&server.create_database("template0").await)).await;
}

#[tokio::test]
async fn every_user_model_is_served_from_mariadb() {
    let server = MariaDbServer::shared().await;
    every_model_is_served(server.url(&server.create_database().await)).await;
}

#[tokio::test]
async fn every_user_model_is_served_from_sqlite() {
    let dir = scratch("user_models");
    every_model_is_served(format!("sqlite://{}", dir.path().join("db").display())).await;
}
