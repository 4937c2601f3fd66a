//! A program with a consumer of its own, which is `examples/consumer.rs`: its timers, and its word at the end of a socket.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::event::resume::{position, position_of, returning};
use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::gateway::Builder;
use crate::support::process::Program;
use crate::support::replica::Replica;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, gateway};

#[path = "../../../examples/consumer.rs"]
#[allow(dead_code, reason = "the program's own `main`")]
mod example;

/// The variable that names the configuration of the process below.
const CONFIG: &str = "LOCKGATE_TEST_EXAMPLE";

const ROUTE: &str = r#"
    path     = "ws/counter/<slug:room>/"
    groups   = ["counter_{room}"]
    consumer = { kind = "counter", step = 2 }
"#;

/// The process of the other tests, and no test: a program installs metrics once, so each needs a process of its own.
#[tokio::test]
#[ignore = "it is the program that the other tests start"]
async fn serves() {
    let file = std::env::var_os(CONFIG).expect("the file of the configuration");
    example::serve(file.into()).await.expect("it drains");
}

fn program(config: &Path) -> Program {
    let name = "frame::rust_consumer::serves";
    let myself = std::env::current_exe().expect("a test has a file");
    Program::new("the example", myself)
        .args(["--exact", name, "--ignored", "--nocapture"])
        // With one thread the name of the test would stand before the first line of the log.
        .args(["--test-threads", "2"])
        .env(CONFIG, config)
}

/// The same consumer, for sockets without a user too.
const OPEN_ROUTE: &str = r#"
    path      = "ws/open/<slug:room>/"
    groups    = ["counter_{room}"]
    anonymous = true
    consumer  = { kind = "counter", step = 2 }
"#;

/// A deployment whose replicas are the example.
async fn started(replicas: usize) -> Gateway {
    let builder = gateway().set("server.drain.delay", "0s").tenant("acme");
    let builder = builder.users(&Database::postgres().await);
    run(builder.route(ROUTE).route(OPEN_ROUTE), replicas).await
}

async fn run(builder: Builder, replicas: usize) -> Gateway {
    let mut gateway = builder.write().await;
    for _ in 0..replicas {
        let replica = Replica::run(program(&gateway.config)).await;
        replica.ready().await;
        gateway.replicas.push(replica);
    }
    gateway
}

/// Opens a socket in the room, and takes its greeting.
async fn enter(gateway: &Gateway, replica: usize, user: &str) -> Socket {
    let tenant = gateway.tenant();
    let dial = gateway.replicas[replica].dial(tenant, "/ws/counter/a/");
    let mut socket = dial.token(&tenant.token(user)).open().await;
    let name = if user == ALICE { "alice" } else { "bob" };
    assert_eq!(socket.next_text().await, format!("welcome {name}"));
    socket
}

/// Before: a call was all that a consumer had, and at the end it could tell nobody.
#[tokio::test]
async fn a_timer_outlives_its_call_and_the_end_of_a_socket_is_published() {
    let gateway = started(1).await;
    let (mut alice, mut bob) = (
        enter(&gateway, 0, ALICE).await,
        enter(&gateway, 0, BOB).await,
    );
    alice.send_text("count in 1").await;
    // The call has ended: the next one is served before the timer has run.
    alice.send_text("count").await;
    for _ in 0..2 {
        assert_eq!(alice.next_text().await, "moved by 2; I sent 4");
        assert_eq!(bob.next_text().await, "moved by 2; I sent 0");
    }
    alice.close(1000, "").await;
    assert_eq!(bob.next_text().await, "alice left");
}

/// What a consumer publishes is recorded like all else, and in the order of the others.
#[tokio::test]
async fn what_a_consumer_publishes_has_positions() {
    for layer in ["pubsub", "core"] {
        let groups = "groups = [{ name = 'counter_<slug:room>', history = { size = 50 } }]";
        let watch = "path = 'ws/watch/<slug:room>/'\n groups = ['counter_{room}']\n resume = true\n deliver = 'event'";
        let builder = gateway().tenant("acme").with("layer.kind", layer);
        let builder = builder.users(&Database::postgres().await).with_toml(groups);
        let gateway = run(builder.route(ROUTE).route(watch), 1).await;
        let (replica, tenant) = (gateway.replica(), gateway.tenant());
        let mut watcher = returning(replica, tenant, "/ws/watch/a/", &[]).open().await;
        let begin = position_of(&position(&mut watcher).await);
        let mut alice = enter(&gateway, 0, ALICE).await;
        alice.send_text("count").await;
        alice.send_text("count").await;
        let first = watcher.next_json().await;
        let second = watcher.next_json().await;
        assert_ne!(position_of(&first), position_of(&second));
        let mut back = returning(replica, tenant, "/ws/watch/a/", &[&begin])
            .open()
            .await;
        for missed in [&first, &second] {
            assert_eq!(back.next_json().await, *missed, "{layer}");
        }
        assert_eq!(position(&mut back).await["recovered"], true);
    }
}

/// The timer of a revoked socket, and that of one that left, count nothing: all that is heard is a timer that ends later.
#[tokio::test]
async fn a_timer_ends_with_its_socket_whatever_ends_it() {
    let gateway = started(2).await;
    let mut bob = enter(&gateway, 1, BOB).await;
    let mut left = enter(&gateway, 0, ALICE).await;
    left.send_text("count in 5").await;
    assert!(left.ping().await.is_empty(), "the call is over");
    drop(left);
    assert_eq!(bob.next_text().await, "alice left");
    let mut revoked = enter(&gateway, 0, ALICE).await;
    revoked.send_text("count in 5").await;
    assert!(revoked.ping().await.is_empty(), "the call is over");
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let body = format!(r#"{{"user_id":"{ALICE}"}}"#);
    let answer = gateway.replicas[1].api(&gateway.api_key, "POST", &path, &body);
    assert_eq!(answer.await.status, 200);
    assert_eq!(revoked.closed().await.0, 4501);
    assert_eq!(bob.next_text().await, "alice left");
    let began = Instant::now();
    bob.send_text("count in 9").await;
    let counted = bob.next_text_within(Duration::from_secs(30)).await;
    assert_eq!(counted, "moved by 2; I sent 2");
    assert!(began.elapsed() >= Duration::from_secs(9), "another timer");
}

/// A drain waits for no timer, and what its sockets say at their end is still published.
#[tokio::test]
async fn a_drain_ends_timers_and_publishes_the_last_words_of_its_sockets() {
    let gateway = started(2).await;
    let mut bob = enter(&gateway, 1, BOB).await;
    let mut alice = enter(&gateway, 0, ALICE).await;
    // The file is read again by the program, with its own kinds.
    gateway.replicas[0].process.signal(Signal::HUP);
    gateway.replicas[0]
        .logged("Applied the configuration")
        .await;
    alice.send_text("count in 300").await;
    assert!(alice.ping().await.is_empty(), "the call is over");
    gateway.replicas[0].terminate();
    assert_eq!(alice.closed().await.0, 1012);
    assert_eq!(bob.next_text().await, "alice left");
    let ended = gateway.replicas[0].exited(Duration::from_secs(30)).await;
    assert!(ended.success(), "{ended}");
}

/// The consumer of the example refuses who has no name, and a socket without a user has none.
#[tokio::test]
async fn a_consumer_sees_that_a_socket_has_no_user() {
    let gateway = started(1).await;
    let tenant = gateway.tenant();
    let dial = || gateway.replica().dial(tenant, "/ws/open/a/");
    Problem::new(403, "refused").is(&dial().refused().await, &tenant.name);
    let mut alice = dial().token(&tenant.token(ALICE)).open().await;
    assert_eq!(alice.next_text().await, "welcome alice");
}
