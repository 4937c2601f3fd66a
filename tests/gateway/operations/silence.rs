//! Failures that used to say nothing. Each test tells what was printed before, and checks what is printed now.

use std::time::Instant;

use serde_json::Value;

use super::doctor::{findings, is};
use crate::support::database::ALICE;
use crate::support::process::Program;
use crate::support::replica::{LOCKGATE, Replica};
use crate::support::socket::Dial;
use crate::support::worker::FakeWorker;
use crate::support::{PATIENCE, RedisServer, gateway, token, unique};

const REFUSED: &str = "Refused a handshake";

/// Waits for the line about a refusal with this reason.
async fn refusal(replica: &Replica, reason: &str) -> Value {
    let line = replica.process.line(reason, PATIENCE, |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["message"] == REFUSED && line["reason"] == reason).then_some(line)
    });
    line.await
}

/// Before: a refused upgrade left no line at any level but one at `debug` for a dependency that did not answer.
#[tokio::test]
async fn a_refusal_is_logged_with_its_request_and_what_to_do() {
    let gateway = gateway()
        .tenant("acme")
        .with("origins", vec!["https://app.example.com".to_owned()])
        .route("path = \"ws/room/<str:room>/\"\ngroups = [\"room_{room}\"]")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let good = tenant.sign(&token::access(ALICE));
    let stray = "https://stray.example.com";

    let dial = |path: &str| replica.dial(tenant, path).token(&good);
    dial("/ws/room/a/").header("Origin", stray).refused().await;
    let line = refusal(replica, "origin_not_allowed").await;
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["tenant.id"], *tenant.name);
    assert_eq!(line["path"], "/ws/room/a/");
    assert_eq!(line["origin"], stray);
    assert_eq!(line["host"], *tenant.host);
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line["count"], 1);
    let advice = line["advice"].as_str().unwrap();
    assert!(
        advice.contains(stray) && advice.contains("origins"),
        "{advice}"
    );

    // A token in the path is a mistake of the client, and no reason to print it.
    dial(&format!("/ws/{good}")).refused().await;
    let line = refusal(replica, "route_not_found").await;
    let advice = line["advice"].as_str().unwrap();
    assert!(advice.contains("ws/room/<str:room>/"), "{advice}");

    dial("/ws/room/caf%C3%A9/").refused().await;
    let line = refusal(replica, "group_name_not_valid").await;
    let why = line["why"].as_str().unwrap();
    assert!(
        why.contains("\"room_{room}\"") && why.contains("'é'"),
        "{why}"
    );

    replica.dial(tenant, "/ws/room/a/").refused().await;
    let line = refusal(replica, "token_missing").await;
    let advice = line["advice"].as_str().unwrap();
    assert!(advice.contains("?token="), "{advice}");

    let stranger = token::sign("another key of thirty-two bytes!", &token::access(ALICE));
    replica
        .dial(tenant, "/ws/room/a/")
        .token(&stranger)
        .refused()
        .await;
    let line = refusal(replica, "token_not_valid").await;
    assert_eq!(line["check"], "signature");

    let printed = replica.process.output.text();
    for secret in [&good, &stranger] {
        assert!(!printed.contains(&**secret), "{printed}");
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!printed.contains(signature), "{printed}");
    }
}

/// Before: nothing. A flood must not become a flood of lines either.
#[tokio::test]
async fn many_refusals_of_one_reason_make_one_line_in_ten_seconds() {
    let gateway = gateway().tenant("acme").start().await;
    let replica = gateway.replica();
    let began = Instant::now();
    const REFUSALS: usize = 30;
    for _ in 0..REFUSALS {
        replica.dial(gateway.tenant(), "/nowhere/").refused().await;
    }
    let most = 1 + began.elapsed().as_secs() / 10;
    refusal(replica, "route_not_found").await;
    let printed = replica.process.output.text();
    let lines = printed.lines().filter(|line| line.contains(REFUSED));
    assert!(lines.count() as u64 <= most, "{printed}");
}

/// Before: of a socket that opened, `debug` showed the end alone.
#[tokio::test]
async fn at_debug_every_refusal_and_every_socket_has_a_line() {
    let gateway = gateway()
        .set("log.level", "debug")
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    for _ in 0..3 {
        replica.dial(gateway.tenant(), "/nowhere/").refused().await;
    }
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    socket.close(1000, "").await;
    replica.logged("Opened a connection").await;
    replica.logged("Closed a connection").await;
    let printed = replica.process.output.text();
    let refused = printed.lines().filter(|line| line.contains(REFUSED));
    assert_eq!(refused.count(), 3, "{printed}");
}

/// Before: `serve` was ready, each handshake of the first route got 400 and each of the second 503, and no line said why.
/// `doctor` found nothing. The third route works.
#[tokio::test]
async fn columns_that_the_database_does_not_return_are_told() {
    let gateway = gateway()
        .tenant("acme")
        .with(
            "users.query",
            "SELECT id, is_active, username AS usernam FROM auth_user WHERE id IN (:user_ids)",
        )
        .route("path = \"ws/me/\"\ngroups = [\"user_{user.username}\"]")
        .route("path = \"ws/club/\"\ngroups = [\"club\"]\nauthorize = \"SELECT 1 FROM no_such_table WHERE id = :user_id\"")
        .route("path = \"ws/all/\"\ngroups = [\"all\"]")
        .start()
        .await;
    let replica = gateway.replica();
    let field = "routes[0].groups[0] names the user's username, and the database returns no such column; the nearest is usernam";
    let statement = "the database refuses routes[1].authorize";
    for what in [field, statement] {
        let line = replica.logged(what).await;
        assert!(line.contains("\"WARN\""), "{line}");
    }
    let warnings = gateway.readyz().await.json()["warnings"].to_string();
    for what in [field, statement] {
        assert!(warnings.contains(what), "{warnings}");
    }
    let to_strangers = replica.readyz().await;
    assert_eq!(to_strangers.status, 200);
    assert!(!to_strangers.body.contains("usernam"), "{to_strangers:?}");

    let doctor = Program::new("lockgate doctor", LOCKGATE)
        .args(["doctor".as_ref(), "-c".as_ref(), gateway.config.as_os_str()])
        .start();
    assert_eq!(doctor.exited(PATIENCE).await.code(), Some(1));
    let found = doctor.output.text();
    assert!(found.contains(field), "{found}");
    assert!(
        found.contains("the authorize of \"ws/club/\" is refused"),
        "{found}"
    );
    gateway.open("/ws/all/").await;
}

/// Before: `lockgate dev` printed nothing about a refused socket.
#[tokio::test]
async fn dev_says_why_it_refuses() {
    let process = Program::new("lockgate dev", LOCKGATE)
        .args(["dev", "--json"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .start();
    let ready = process.line("its addresses", PATIENCE, |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["listen"].as_str()?.parse().ok()
    });
    let server: std::net::SocketAddr = ready.await;
    let dial = Dial::new(server, &server.to_string(), "/ws/echo");
    dial.refused().await;
    let line = process.line(REFUSED, PATIENCE, |line| {
        line.contains(REFUSED).then(|| line.to_owned())
    });
    let line = line.await;
    assert!(line.contains("the route ends with a slash"), "{line}");
}

/// Before: the client got 503 after `worker_timeout`, no line said for what it had waited, no metric counted it, and `doctor`
/// knew no workers.
#[tokio::test]
async fn a_worker_that_does_not_answer_is_told() {
    for (kind, why) in [
        ("pubsub", "no process listens to the channel"),
        ("core", "answered within 1s"),
    ] {
        let channel = format!("worker_{}", unique());
        let gateway = gateway()
            .tenant("acme")
            .with("layer.kind", kind)
            .route(&format!(
                "path = \"ws/w/\"\nconsumer = {{ kind = \"worker\", channel = \"{channel}\", accept = \"worker\", worker_timeout = \"1s\" }}"
            ))
            .start()
            .await;
        let (replica, tenant) = (gateway.replica(), gateway.tenant());
        let dial = replica.dial(tenant, "/ws/w/").token(&tenant.token(ALICE));
        assert_eq!(dial.refused().await.status, 503);
        let line = refusal(replica, "unavailable").await;
        let told = line["why"].as_str().unwrap();
        assert!(told.contains(&channel) && told.contains(why), "{told}");
        let of_tenant = [("tenant", &*tenant.name)];
        let metrics = replica.metrics().await;
        let timeouts = metrics.value("lockgate_worker_timeouts_total", &of_tenant);
        // Also where nothing listens, and the handshake is refused at once: the alert reads this metric alone.
        assert_eq!(timeouts, 1.0, "{kind}");
        assert_eq!(metrics.value("lockgate_worker_waiting", &of_tenant), 0.0);

        if kind == "core" {
            // An event that nothing has taken since 1970.
            let list = format!("{}{channel}", tenant.prefix);
            let redis = RedisServer::shared().await;
            let _: u64 = redis.command(&["ZADD", &list, "1", "event"]).await;
        }
        let doctor = Program::new("lockgate doctor", LOCKGATE)
            .args(["doctor".as_ref(), "-c".as_ref(), gateway.config.as_os_str()])
            .start();
        assert_eq!(doctor.exited(PATIENCE).await.code(), Some(1));
        let found = doctor.output.text();
        assert!(
            found.contains(&format!("run `manage.py runworker {channel}`")),
            "{found}"
        );
    }
}

/// The doctor finds the consumers of each channel of a route on `pubsub`, and an emptied list on `core`.
#[tokio::test]
async fn workers_that_are_there_are_found() {
    let redis = RedisServer::shared().await;
    for (kind, seen) in [
        ("pubsub", "2 consumers"),
        ("core", "1 event waiting, none for long"),
    ] {
        let channel = format!("worker_{}", unique());
        let gateway = gateway()
            .tenant("acme")
            .with("layer.kind", kind)
            .route(&format!(
                "path = \"ws/w/\"\nconsumer = {{ kind = \"worker\", channel = \"{channel}\", partitions = 2 }}"
            ))
            .write()
            .await;
        let tenant = gateway.tenant();
        let subject = format!("tenant {}", tenant.name);
        let first = format!("{channel}.0");
        let _first = FakeWorker::on(redis, &first).await;
        if kind == "pubsub" {
            let found = findings(&gateway.config);
            let lonely = format!("\"{channel}.1\": nothing listens");
            is(&found, (&subject, "workers"), "warn", &lonely);
        } else {
            // An event that has just come.
            let list = format!("{}{first}", tenant.prefix);
            let now = token::now().to_string();
            let _: u64 = redis.command(&["ZADD", &list, &now, "event"]).await;
        }
        let _second = FakeWorker::on(redis, &format!("{channel}.1")).await;
        let found = findings(&gateway.config);
        is(&found, (&subject, "workers"), "ok", seen);
        assert_eq!(found["ok"], true, "{found}");
    }
}

/// Before: the frame vanished, and the client of the first hour saw nothing.
#[tokio::test]
async fn the_demo_and_the_default_file_answer_a_frame_that_the_route_does_not_take() {
    let process = Program::new("lockgate dev", LOCKGATE)
        .args(["dev", "--json"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .start();
    let url = process.line("its addresses", PATIENCE, |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["users"][0]["url"].as_str().map(str::to_owned)
    });
    let url = url.await;
    let rest = url.strip_prefix("ws://").unwrap();
    let (host, rest) = rest.split_once('/').unwrap();
    let (path, query) = rest.split_once('?').unwrap();
    let dial = Dial::new(host.parse().unwrap(), host, &format!("/{path}"));
    let mut socket = dial.query(query).open().await;
    assert_eq!(socket.next_json().await["type"], "lockgate.position");
    socket.send_text("hello").await;
    let answer = socket.next_json().await;
    assert_eq!(answer["type"], "lockgate.error", "{answer}");
    assert_eq!(answer["code"], "message_not_valid", "{answer}");

    let printed = Program::new("lockgate config default", LOCKGATE)
        .args(["config", "default"])
        .start();
    printed.exited(PATIENCE).await;
    let file = printed.output.text();
    assert!(file.contains("on_invalid = \"reply\""), "{file}");
}
