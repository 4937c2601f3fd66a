//! `lockgate explain` says of a handshake what the server does with it.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::database::{ALICE, BOB, CAROL};
use crate::support::replica::LOCKGATE;
use crate::support::{Gateway, gateway, token};

const APP: &str = "https://app.example.com";

/// The report, whose exit status fits it.
fn explain(gateway: &Gateway, arguments: &[&str]) -> Value {
    let output = Command::new(LOCKGATE)
        .arg("explain")
        .args(arguments)
        .arg("--json")
        .arg("-c")
        .arg(&gateway.config)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{error}"));
    let status = match report["accepted"].as_bool() {
        Some(true) => 0,
        Some(false) => 1,
        None => 3,
    };
    assert_eq!(output.status.code(), Some(status), "{report}");
    report
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().unwrap();
    let found = steps.iter().find(|step| step["name"] == name);
    found.unwrap_or_else(|| panic!("no step {name}: {report}"))
}

async fn club() -> Gateway {
    gateway()
        .tenant("acme")
        .with("origins", vec![APP.to_owned()])
        .with("refusal", "close")
        .with("limits.connections", 5)
        .route(
            "path = \"ws/room/<str:room>/\"
             groups = [\"room_{room}\", \"user_{user.id}\"]
             authorize = \"SELECT 1 FROM auth_user WHERE id = :user_id AND username = 'alice'\"",
        )
        .start()
        .await
}

/// Before: only the token had such a command, and a developer guessed at everything else.
#[tokio::test]
async fn a_pasted_url_is_explained_from_host_to_consumer() {
    let gateway = club().await;
    let tenant = gateway.tenant();
    let alice = tenant.token(ALICE);
    let url = format!("wss://{}/ws/room/lobby/?token={alice}", tenant.host);
    let report = explain(&gateway, &["--url", &url, "--origin", APP]);
    assert_eq!(report["accepted"], true, "{report}");
    assert_eq!(report["groups"], json!(["room_lobby", "user_1"]));
    for name in ["host", "tenant", "route", "origin", "token", "signature"] {
        assert_eq!(step(&report, name)["verdict"], "pass", "{name}: {report}");
    }
    for name in ["denylist", "user", "groups", "authorize", "consumer"] {
        assert_eq!(step(&report, name)["verdict"], "pass", "{name}: {report}");
    }
    assert_eq!(step(&report, "tenant")["value"], *tenant.name);
    assert_eq!(step(&report, "route")["detail"], "room=lobby");
    let budgets = step(&report, "budgets");
    assert_eq!(budgets["verdict"], "unknown");
    assert_eq!(budgets["value"], json!({"connections": 5}));
    let signature = alice.rsplit('.').next().unwrap();
    assert!(!report.to_string().contains(signature), "{report}");
}

/// Routes know a group by one name, and Django sends to another.
#[tokio::test]
async fn a_namespace_is_told_beside_the_groups() {
    let gateway = gateway()
        .tenant("acme")
        .with("layer.namespace", "acme.")
        .route("path = \"ws/room/<slug:room>/\"\n groups = [\"room_{room}\", \"all\"]")
        .start()
        .await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    let url = |room: &str| format!("wss://{}/ws/room/{room}/?token={token}", tenant.host);
    let report = explain(&gateway, &["--url", &url("lobby")]);
    assert_eq!(report["groups"], json!(["room_lobby", "all"]));
    let groups = step(&report, "groups");
    assert_eq!(groups["value"], json!(["room_lobby", "all"]));
    assert_eq!(
        groups["detail"],
        "Django sends to acme.room_lobby, acme.all"
    );

    // 99 characters are allowed, and the namespace has five of them.
    for (length, accepted) in [(89, true), (90, false)] {
        let room = "r".repeat(length);
        let report = explain(&gateway, &["--url", &url(&room)]);
        assert_eq!(report["accepted"], accepted, "{report}");
        let path = format!("/ws/room/{room}/");
        let dial = gateway.replica().dial(tenant, &path).token(&token);
        let attempt = dial.attempt().await;
        let refused = attempt.err();
        assert_eq!(refused.is_none(), accepted, "{refused:?}");
        if !accepted {
            assert_eq!(report["code"], "group_name_not_valid", "{report}");
            let detail = step(&report, "groups")["detail"].as_str().unwrap();
            assert!(detail.contains("with those of layer.namespace"), "{detail}");
            assert_eq!(refused.unwrap().status, 400);
        }
    }
}

/// The same request to a running replica and to the command, step by step.
#[tokio::test]
async fn each_refusal_is_the_one_of_the_server() {
    let gateway = club().await;
    let tenant = gateway.tenant();
    let sign = |user| tenant.sign(&token::access(user));
    let stranger = token::sign("another key of thirty-two bytes!", &token::access(ALICE));
    let cases = [
        (
            "tenant_not_found",
            "no.such.host",
            "/ws/room/a/",
            APP,
            sign(ALICE),
        ),
        (
            "route_not_found",
            &*tenant.host,
            "/ws/room/a",
            APP,
            sign(ALICE),
        ),
        (
            "origin_not_allowed",
            &*tenant.host,
            "/ws/room/a/",
            "https://x.test",
            sign(ALICE),
        ),
        (
            "token_missing",
            &*tenant.host,
            "/ws/room/a/",
            APP,
            String::new(),
        ),
        (
            "token_not_valid",
            &*tenant.host,
            "/ws/room/a/",
            APP,
            stranger,
        ),
        (
            "user_inactive",
            &*tenant.host,
            "/ws/room/a/",
            APP,
            sign(CAROL),
        ),
        (
            "user_not_found",
            &*tenant.host,
            "/ws/room/a/",
            APP,
            sign("999"),
        ),
        (
            "group_name_not_valid",
            &*tenant.host,
            "/ws/room/%C3%A9/",
            APP,
            sign(ALICE),
        ),
        (
            "group_forbidden",
            &*tenant.host,
            "/ws/room/a/",
            APP,
            sign(BOB),
        ),
    ];
    for (code, host, path, origin, token) in cases {
        let target = format!("{host}{path}?token={token}");
        let report = explain(&gateway, &["--url", &target, "--origin", origin]);
        assert_eq!(report["code"], code, "{report}");
        let dial = crate::support::socket::Dial::new(gateway.replica().server, host, path);
        let dial = dial.token(&token).header("Origin", origin);
        match dial.attempt().await {
            Err(refusal) => {
                assert_eq!(refusal.json()["code"], code);
                assert_eq!(report["close_code"], Value::Null, "{report}");
            }
            Ok(mut socket) => {
                let (close, reason) = socket.closed().await;
                assert_eq!(reason, code);
                assert_eq!(report["close_code"], close, "{report}");
            }
        }
        assert_eq!(step(&report, "consumer")["verdict"], "not_reached");
    }
}

/// The group name says which template and which character; a path without its slash says so.
#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let gateway = club().await;
    let tenant = gateway.tenant();
    let alice = tenant.token(ALICE);
    let by_path = |path: &str, token: &str| {
        explain(
            &gateway,
            &[
                "--host",
                &tenant.host,
                "--path",
                path,
                "--token",
                token,
                "--origin",
                APP,
            ],
        )
    };
    let report = by_path("/ws/room/a", &alice);
    let advice = report["advice"].as_str().unwrap();
    assert!(advice.contains("ends with a slash"), "{advice}");
    let report = by_path("/ws/room/caf%C3%A9/", &alice);
    let detail = step(&report, "groups")["detail"].as_str().unwrap();
    assert!(
        detail.contains("\"room_{room}\"") && detail.contains("'é'"),
        "{detail}"
    );
    let report = by_path("/ws/room/a/", &tenant.token(BOB));
    let detail = step(&report, "authorize")["detail"].as_str().unwrap();
    assert!(
        detail.contains("no row: SELECT 1 FROM auth_user"),
        "{detail}"
    );
    gateway
        .replica()
        .api(
            &gateway.api_key,
            "POST",
            &format!("/v1/tenants/{}/suspend", tenant.name),
            "",
        )
        .await;
    let report = by_path("/ws/room/a/", &alice);
    assert_eq!(report["code"], "tenant_suspended", "{report}");
}
