//! The verbs of the command line that are not another file's subject.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::database::ALICE;
use crate::support::replica::LOCKGATE;
use crate::support::{gateway, scratch};

fn lockgate(arguments: &[&str]) -> Output {
    Command::new(LOCKGATE).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn healthcheck_tells_live_from_ready() {
    let gateway = gateway().tenant("acme").start().await;
    let url = format!("http://{}", gateway.replica().admin);
    assert_eq!(
        lockgate(&["healthcheck", "--url", &url]).status.code(),
        Some(0)
    );
    assert_eq!(
        lockgate(&["healthcheck", "--ready", "--url", &url])
            .status
            .code(),
        Some(0)
    );
    let nobody = [
        "healthcheck",
        "--url",
        "http://127.0.0.1:1",
        "--timeout",
        "1s",
    ];
    assert_eq!(lockgate(&nobody).status.code(), Some(1));
}

#[tokio::test]
async fn send_prints_the_answer_and_fails_with_a_wrong_key() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let url = format!("http://{}", gateway.replica().api);
    let dir = scratch("keys");
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "some-other-key-of-thirty-two-bytes").unwrap();
    let send = |key: &str, event: &str| {
        lockgate(&[
            "send",
            "--tenant",
            &tenant.name,
            "--group",
            "chat_lobby",
            "--url",
            &url,
            "--api-key-file",
            key,
            event,
        ])
    };
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    let key = gateway.key_file.to_str().unwrap();
    let sent = send(key, r#"{"type": "x", "n": 1}"#);
    assert_eq!(sent.status.code(), Some(0), "{}", text(&sent));
    assert_eq!(socket.next_json().await, json!({"n": 1}));
    assert_eq!(
        send(wrong.to_str().unwrap(), r#"{"type": "x"}"#)
            .status
            .code(),
        Some(1)
    );
    assert_ne!(send(key, "not an event").status.code(), Some(0));
    assert!(socket.ping().await.is_empty());
}

#[test]
fn a_wrong_configuration_names_every_mistake_with_its_place() {
    let dir = scratch("config");
    let file = dir.path().join("lockgate.toml");
    std::fs::write(
        &file,
        r#"[server]
listen = "nowhere"
handshake_timeout = 10
colour = "blue"

[tenants.acme]
hosts = ["a.test"]
refusal = "maybe"
[tenants.acme.token]
algorithm = "HS999"
signing_key = "the signing key of acme, which no message may show"
[tenants.acme.users]
[[tenants.acme.routes]]
path = "ws/<colour:x>/"
groups = ["g_{y}"]
"#,
    )
    .unwrap();
    let output = lockgate(&["config", "check", "--config", file.to_str().unwrap()]);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for (line, key) in [
        (2, "listen"),
        (3, "handshake_timeout"),
        (4, "colour"),
        (8, "refusal"),
        (10, "algorithm"),
        (14, "path"),
    ] {
        let found = told
            .lines()
            .any(|text| text.contains(&format!("lockgate.toml:{line}")) && text.contains(key));
        assert!(found, "nothing about {key} in line {line}:\n{told}");
    }
    assert!(told.contains("database"), "{told}");
    assert!(!told.contains("no message may show"), "{told}");
    // Serving it ends the same way, before any port is bound.
    let output = lockgate(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

#[tokio::test]
async fn a_good_configuration_checks_out_and_variables_override_it() {
    let gateway = gateway()
        .set("server.drain.delay", "5s")
        .set("server.drain.window", "20s")
        .tenant("acme")
        .write()
        .await;
    let config = gateway.config.to_str().unwrap();
    let output = lockgate(&["config", "check", "--config", config]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(told, "The configuration is valid: 1 tenant, 1 file\n");
    assert_eq!(
        lockgate(&["config", "check", "--grace", "30s", "--config", config])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        lockgate(&["config", "check", "--grace", "29s", "--config", config])
            .status
            .code(),
        Some(1)
    );
    let overridden = Command::new(LOCKGATE)
        .args(["config", "check", "--config", config])
        .env("LOCKGATE_SERVER__HANDSHAKE_TIMEOUT", "soon")
        .output()
        .unwrap();
    assert_eq!(overridden.status.code(), Some(1));
    assert!(
        text(&overridden).contains("LOCKGATE_SERVER__HANDSHAKE_TIMEOUT"),
        "{}",
        text(&overridden)
    );
}

/// Before: a line about the table of tenants came first.
#[test]
fn a_missing_configuration_file_is_the_one_mistake() {
    let output = lockgate(&["serve"]);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.starts_with("error: no configuration file: name one"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");
}

/// Before: each command that reads the file printed its warnings, `token mint` inside of `token explain` twice.
#[tokio::test]
async fn warnings_are_for_those_who_check_or_run_a_configuration() {
    let gateway = gateway()
        .tenant("acme")
        .with("token.signing_key", "short")
        .write()
        .await;
    let (tenant, config) = (&gateway.tenant().name, gateway.config.to_str().unwrap());
    let mint = ["token", "mint", "--tenant", tenant, "--user", "1"];
    for (arguments, warns) in [
        (&mint[..], false),
        (&["config", "check"], true),
        (&["doctor"], true),
    ] {
        let output = lockgate(&[arguments, &["--config", config]].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(told.contains("warning: "), warns, "{arguments:?}: {told}");
        if !warns {
            assert_eq!((output.status.code(), &*told), (Some(0), ""));
        }
    }
}

#[test]
fn defaults_and_reference_are_printed_and_the_defaults_are_toml() {
    let output = lockgate(&["config", "default"]);
    assert!(output.status.success());
    let defaults: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    assert_eq!(
        defaults["server"]["handshake_timeout"].as_str(),
        Some("10s")
    );
    let reference = text(&lockgate(&["config", "reference"]));
    for key in [
        "handshake_timeout",
        "send_queue",
        "on_outage",
        "tenant_series",
    ] {
        assert!(reference.contains(key), "{key}");
    }
}

#[test]
fn wrong_usage_is_exit_2_and_help_has_examples() {
    assert_eq!(lockgate(&["no-such-verb"]).status.code(), Some(2));
    assert_eq!(lockgate(&["send"]).status.code(), Some(2));
    for verb in [
        &["serve"][..],
        &["dev"],
        &["send"],
        &["revoke"],
        &["connections"],
        &["group", "add"],
        &["token", "mint"],
        &["token", "explain"],
        &["healthcheck"],
        &["config", "check"],
        &["doctor"],
    ] {
        let output = lockgate(&[verb, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        assert!(
            text(&output).contains("xample"),
            "{verb:?}: {}",
            text(&output)
        );
    }
}

#[tokio::test]
async fn revoke_and_connections_speak_to_the_running_gateway() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let url = format!("http://{}", gateway.replica().api);
    let key = gateway.key_file.to_str().unwrap();
    let remote = [
        "--tenant",
        &tenant.name,
        "--url",
        &url,
        "--api-key-file",
        key,
    ];
    let run = |verb: &[&str]| lockgate(&[verb, &remote].concat());
    let mut first = gateway.open("/ws/chat/lobby/").await;
    let mut second = gateway.open("/ws/chat/attic/").await;
    let all = run(&["connections"]);
    assert!(text(&all).contains("2 connections; 1 of 1 replicas answered"));
    let group = run(&["connections", "--group", "chat_attic", "--json"]);
    let group: Value = serde_json::from_slice(&group.stdout).unwrap();
    assert_eq!(group["connections"], 1);
    assert_eq!(group["sockets"][0]["path"], "/ws/chat/attic/");
    let of_user = run(&["connections", "--user", ALICE]);
    assert!(text(&of_user).contains("2 connections; 1 of 1 replicas answered"));
    let channel = group["sockets"][0]["channel"].as_str().unwrap();
    for (verb, sockets, changed) in [
        ("add", ["--user", ALICE], 2),
        ("remove", ["--channel", channel], 1),
        ("add", ["--channel", channel], 1),
        ("remove", ["--user", ALICE], 2),
    ] {
        let output = run(&[&["group", verb, "--group", "room_7"][..], &sockets].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["changed"], changed, "{verb} {sockets:?}");
    }
    let revoked = run(&["revoke", "--user", ALICE]);
    assert_eq!(revoked.status.code(), Some(0), "{}", text(&revoked));
    let answer: Value = serde_json::from_slice(&revoked.stdout).unwrap();
    assert_eq!(answer["closed"], 2);
    for socket in [&mut first, &mut second] {
        assert_eq!(socket.closed().await.0, 4501);
    }
    // An order that would revoke more than was meant, or nothing, is wrong usage.
    for wrong in [
        &["revoke"][..],
        &["revoke", "--all"],
        &["group", "add", "--group", "room_7"],
        &[
            "group",
            "remove",
            "--group",
            "g",
            "--user",
            "1",
            "--channel",
            "c",
        ],
        &["revoke", "--jti", "x"],
        &["revoke", "--token", "a-token-on-the-command-line"],
        &["revoke", "--user", "1", "--all", "--issued-before", "1"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn keys_may_come_from_files_and_variables() {
    let dir = scratch("secrets");
    let file = dir.path().join("key");
    std::fs::write(&file, "a signing key from a file, with a line end\n").unwrap();
    let gateway = gateway()
        .tenant("acme")
        .with(
            "token.signing_key",
            toml::Table::from_iter([("file".to_owned(), file.display().to_string().into())]),
        )
        .start()
        .await;
    let token = crate::support::token::sign(
        "a signing key from a file, with a line end",
        &crate::support::token::access(ALICE),
    );
    gateway
        .replica()
        .dial(gateway.tenant(), "/ws/chat/lobby/")
        .token(&token)
        .open()
        .await;
}
