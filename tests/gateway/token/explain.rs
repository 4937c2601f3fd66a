//! `lockgate token explain --json`, the binary with a real database, on the golden tokens of simplejwt.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::database::ALICE;
use crate::support::replica::LOCKGATE;
use crate::support::{Database, Gateway, RedisServer, Tenant, gateway, token};

const VECTORS: &str = include_str!("../../vectors/simplejwt_tokens.json");

/// The names of the checks, in order.
const CHECKS: [&str; 18] = [
    "size",
    "format",
    "algorithm",
    "key",
    "signature",
    "iat",
    "nbf",
    "exp",
    "issuer",
    "audience",
    "sub",
    "jti",
    "token_type",
    "user_id",
    "denylist",
    "user",
    "is_active",
    "password",
];

/// Configurations for whose users, keys or algorithms other tests are there: a JWKS that has to be served, keys that
/// no tenant is given, algorithms that the contract leaves out.
fn is_for_here(config: &Value) -> bool {
    let settings = &config["settings"];
    let algorithm = settings["ALGORITHM"].as_str().unwrap_or("HS256");
    config["user_pk_type"] == "integer"
        && settings.get("JWK_URL").is_none()
        && algorithm.starts_with("HS")
}

/// Django's blacklist tables are not read.
const BLACKLISTED: [&str; 2] = ["sliding_blacklisted", "refresh_blacklisted"];

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// SIMPLE_JWT as a tenant's settings.
fn settings(config: &Value) -> toml::Table {
    let mut token = toml::Table::new();
    let mut put = |key: &str, value: toml::Value| drop(token.insert(key.into(), value));
    put("signing_key", text(&config["django_secret_key"]).into());
    let list = |value: &Value| match value {
        Value::Array(texts) => texts.iter().map(text).collect::<Vec<_>>(),
        one => vec![text(one)],
    };
    let or_off = |value: &Value| {
        value
            .as_str()
            .map_or(toml::Value::Boolean(false), Into::into)
    };
    for (name, value) in config["settings"].as_object().unwrap() {
        match name.as_str() {
            "LEEWAY" => {
                let seconds = value
                    .get("timedelta")
                    .unwrap_or(value)
                    .as_f64()
                    .unwrap_or(0.0);
                put("leeway", format!("{}ms", seconds * 1000.0).into());
            }
            "AUTH_TOKEN_CLASSES" => {
                let classes = list(value);
                let kinds = classes
                    .iter()
                    .filter_map(|class| class.rsplit('.').next()?.strip_suffix("Token"));
                let kinds: Vec<_> = kinds.map(str::to_lowercase).collect();
                if kinds == ["untyped"] {
                    put("token_type_claim", false.into());
                } else {
                    put("token_types", kinds.into());
                }
            }
            "ALGORITHM" | "SIGNING_KEY" | "USER_ID_CLAIM" | "USER_ID_FIELD"
            | "REVOKE_TOKEN_CLAIM" => {
                put(&name.to_lowercase(), text(value).into());
            }
            "AUDIENCE" | "ISSUER" => put(&name.to_lowercase(), list(value).into()),
            "JTI_CLAIM" | "TOKEN_TYPE_CLAIM" => put(&name.to_lowercase(), or_off(value)),
            "CHECK_REVOKE_TOKEN" | "CHECK_USER_IS_ACTIVE" => {
                put(&name.to_lowercase(), value.as_bool().unwrap().into());
            }
            // Ignored by simplejwt for HS algorithms.
            "VERIFYING_KEY" => {}
            other => panic!("setting {other} is not mapped"),
        }
    }
    token
}

/// A database with the users of a configuration.
async fn users(config: &Value) -> Database {
    let database = Database::sqlite().await;
    database.execute("DELETE FROM auth_user").await;
    for user in config["users"].as_array().unwrap() {
        let column = |name: &str| text(user.get(name).unwrap_or(&json!(""))).replace('\'', "''");
        let flag = |name: &str, default: bool| u8::from(user[name].as_bool().unwrap_or(default));
        let insert = format!(
            "INSERT INTO auth_user (id, username, email, password, is_active, is_staff, is_superuser, first_name, last_name, date_joined)
             VALUES ({}, '{}', '{}', '{}', {}, {}, 0, '', '', '2030-01-01')",
            column("id"), column("username"), column("email"), column("password"),
            flag("is_active", true), flag("is_staff", false),
        );
        database.execute(&insert).await;
    }
    database
}

fn explain(gateway: &Gateway, tenant: &Tenant, arguments: &[&str]) -> Output {
    Command::new(LOCKGATE)
        .args([
            "token",
            "explain",
            "--json",
            "--tenant",
            &tenant.name,
            "--config",
        ])
        .arg(&gateway.config)
        .args(arguments)
        .output()
        .unwrap()
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[tokio::test]
async fn golden_tokens_get_simplejwts_verdict_from_the_binary() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let configs: Vec<_> = vectors["configs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|config| is_for_here(config))
        .collect();
    let mut builder = gateway();
    for (n, config) in configs.iter().enumerate() {
        let mut table = toml::Table::new();
        table.insert("token".into(), settings(config).into());
        builder = builder
            .tenant(&format!("v{n}"))
            .users(&users(config).await)
            .with_toml(&table.to_string());
        // A field that is not the key has to be asked for.
        if let Some(field) = config["settings"]["USER_ID_FIELD"].as_str() {
            let query = format!(
                "SELECT id, {field}, is_active, password FROM auth_user WHERE {field} IN (:user_ids)"
            );
            builder = builder
                .with("users.query", query)
                .with("users.id_type", "text");
        }
    }
    let gateway = builder.write().await;
    let mut wrong = Vec::new();
    let mut judged = 0;
    for (n, config) in configs.iter().enumerate() {
        let tenant = gateway.named(&format!("v{n}"));
        for case in config["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let now = case["now"].to_string();
            let token = case["token"].as_str().unwrap();
            let output = explain(&gateway, tenant, &["--at", &now, "--", token]);
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let expected = &case["expected"];
            let accepted = expected["result"] == "ok" || BLACKLISTED.contains(&name);
            let code = expected["body"]["code"].as_str().filter(|_| !accepted);
            let code_agrees = code.is_none_or(|code| answer["code"] == code)
                || expected["result"] == "server_error";
            let status = output.status.code();
            judged += 1;
            if answer["accepted"] != accepted
                || !code_agrees
                || status != Some(i32::from(!accepted))
            {
                wrong.push(format!(
                    "{} / {name}: {status:?} {answer}, not {expected}",
                    config["config"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {judged}: {wrong:#?}", wrong.len());
    assert!(judged > 150, "{judged}");
}

#[tokio::test]
async fn an_explanation_names_every_check_in_order_and_shows_no_secret() {
    let gateway = gateway().tenant("acme").write().await;
    let tenant = gateway.tenant();
    let good = tenant.token(ALICE);
    let output = explain(&gateway, tenant, &[&good]);
    let accepted = answer(&output);
    assert_eq!(output.status.code(), Some(0), "{accepted}");
    assert_eq!(accepted["accepted"], true);
    assert_eq!(accepted["code"], Value::Null);
    let names: Vec<_> = accepted["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| text(&check["name"]))
        .collect();
    assert_eq!(names, CHECKS);

    let verdict = |answer: &Value, name: &str| {
        let check = answer["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"] == name);
        text(&check.unwrap()["verdict"])
    };
    // A check that is switched off says so.
    let detail = |answer: &Value, name: &str| {
        let checks = answer["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        text(&check.unwrap()["detail"])
    };
    for (name, expected) in [
        ("is_active", ""),
        ("password", "not checked: check_revoke_token is false"),
        ("audience", "not checked: no audience is configured"),
    ] {
        assert_eq!(detail(&accepted, name), expected, "{name}");
    }
    // Offline neither Redis nor the database is asked.
    let offline = answer(&explain(&gateway, tenant, &["--offline", &good]));
    for name in ["denylist", "user", "is_active", "password"] {
        assert_eq!(verdict(&offline, name), "unknown", "{name}");
    }
    assert_eq!(offline["accepted"], true);
    // After a bad signature nothing is reached; after a good one every check is looked at.
    let forged = answer(&explain(
        &gateway,
        tenant,
        &[&token::sign(
            "another key of thirty-two bytes or so",
            &token::access(ALICE),
        )],
    ));
    assert_eq!(verdict(&forged, "signature"), "fail");
    for name in &CHECKS[5..] {
        assert_eq!(verdict(&forged, name), "not_reached", "{name}");
    }
    let mut claims = token::access(ALICE);
    claims["exp"] = json!(1);
    claims["token_type"] = json!("refresh");
    let output = explain(&gateway, tenant, &[&tenant.sign(&claims)]);
    let twice = answer(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        (verdict(&twice, "exp"), verdict(&twice, "token_type")),
        ("fail".into(), "fail".into())
    );
    assert_eq!(twice["code"], "token_not_valid");
    assert_eq!(verdict(&twice, "user"), "not_reached");
    // `--at` may have a fraction.
    claims["token_type"] = json!("access");
    claims["iat"] = json!(0);
    let at = |at: &str| {
        answer(&explain(
            &gateway,
            tenant,
            &["--at", at, &tenant.sign(&claims)],
        ))["accepted"]
            .clone()
    };
    assert_eq!((at("0.5"), at("1.0")), (json!(true), json!(false)));

    let signature = good.rsplit('.').next().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &accepted.to_string();
    assert!(
        !printed.contains(signature) && !printed.contains(&tenant.key),
        "{printed}"
    );
}

#[tokio::test]
async fn a_denied_token_and_an_absent_dependency_are_told_apart() {
    let redis = RedisServer::start().await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").write().await;
    let tenant = gateway.tenant();
    let mut claims = token::access(ALICE);
    claims["jti"] = json!("denied");
    let () = redis
        .command(&["SET", &tenant.redis_key("deny:jti:denied"), "1"])
        .await;
    let output = explain(&gateway, tenant, &[&tenant.sign(&claims)]);
    assert_eq!(
        (output.status.code(), &answer(&output)["code"]),
        (Some(1), &json!("token_revoked"))
    );
    redis.kill();
    let output = explain(&gateway, tenant, &[&tenant.token(ALICE)]);
    assert_eq!(
        (output.status.code(), &answer(&output)["accepted"]),
        (Some(3), &Value::Null)
    );
    let cause = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        cause.starts_with("no answer from a dependency: redis (io)") && cause.lines().count() == 1,
        "{cause}"
    );
    // A token that is refused without Redis is refused all the same.
    claims["exp"] = json!(1);
    assert_eq!(
        explain(&gateway, tenant, &[&tenant.sign(&claims)])
            .status
            .code(),
        Some(1)
    );
}

#[tokio::test]
async fn a_minted_token_opens_a_socket() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let mint = |arguments: &[&str]| {
        let output = Command::new(LOCKGATE)
            .args(["token", "mint", "--tenant", &tenant.name, "--config"])
            .arg(&gateway.config)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    };
    let token = mint(&["--user", ALICE]);
    gateway
        .replica()
        .dial(tenant, "/ws/chat/lobby/")
        .token(&token)
        .open()
        .await;
    let other = mint(&["--user", ALICE, "--lifetime", "1h", "--claim", "plan=gold"]);
    gateway
        .replica()
        .dial(tenant, "/ws/chat/lobby/")
        .token(&other)
        .open()
        .await;
    assert_eq!(BTreeSet::from([&token, &other]).len(), 2);
    // From standard input, as a pipe in a shell would have it.
    let output = Command::new("sh")
        .args([
            "-c",
            r#"printf '%s\n' "$3" | "$0" token explain --json --tenant "$1" --config "$2" -"#,
            LOCKGATE,
        ])
        .args([
            tenant.name.as_str(),
            gateway.config.to_str().unwrap(),
            &token,
        ])
        .output()
        .unwrap();
    assert_eq!(answer(&output)["accepted"], true, "{output:?}");
}

#[tokio::test]
async fn an_id_that_no_user_can_have_is_not_minted() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .write()
        .await;
    for (user, told) in [
        (
            "abc",
            "--user \"abc\": a user id of tenant TENANT must be an integer",
        ),
        (
            "",
            "--user \"\": a user id of tenant TENANT must be an integer",
        ),
    ] {
        let output = Command::new(LOCKGATE)
            .args(["token", "mint", "--tenant", &gateway.tenant().name])
            .args(["--user", user, "--config"])
            .arg(&gateway.config)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{user}");
        assert!(output.stdout.is_empty(), "{user}");
        let error =
            String::from_utf8_lossy(&output.stderr).replace(&gateway.tenant().name, "TENANT");
        assert_eq!(error.trim_end(), format!("error: {told}"));
    }
}
