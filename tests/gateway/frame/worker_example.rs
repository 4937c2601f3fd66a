//! `examples/django_worker`, with its own files: a Django project whose worker decides about sockets and answers frames.

use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use crate::problem::word;
use crate::support::cluster::Cluster;
use crate::support::django::python;
use crate::support::process::{Process, Program};
use crate::support::replica::Replica;
use crate::support::socket::{Dial, Socket};
use crate::support::{PATIENCE, RedisServer, eventually, scratch, token};

const EXAMPLE: &str = "examples/django_worker";
const KEY: &str = "the signing key of the example, only for tests";

/// `manage.py` of the example.
fn manage(folder: &Path, url: &str, arguments: &[&str]) -> Program {
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/django");
    Program::new("manage.py", python())
        .args(["-B", "manage.py"])
        .args(arguments)
        .dir(folder)
        .env("PYTHONPATH", layers)
        .env("REDIS_URL", url)
}

/// A copy of the example with its users: 1 is on the staff, 2 is not.
fn set_up(folder: &Path, url: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE);
    std::fs::create_dir(folder.join("chat")).unwrap();
    for file in ["manage.py", "lockgate.toml"] {
        std::fs::copy(from.join(file), folder.join(file)).unwrap();
    }
    for entry in std::fs::read_dir(from.join("chat")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, folder.join("chat").join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(folder.join("signing-key"), KEY).unwrap();
    manage(folder, url, &["migrate", "--verbosity", "0"]).run();
    let users = "from django.contrib.auth.models import User as U\n\
                 U.objects.create(username='alice', is_staff=True)\n\
                 U.objects.create(username='bob')";
    manage(folder, url, &["shell", "--command", users]).run();
}

/// The gateway with the example's file, on ports and a Redis of the test.
async fn serve(folder: &Path, url: &str) -> Replica {
    let file = folder.join("lockgate.toml");
    let mut text = std::fs::read_to_string(&file).unwrap();
    for (from, to) in [
        ("127.0.0.1:8001", "127.0.0.1:0".to_owned()),
        ("127.0.0.1:9000", "127.0.0.1:0".to_owned()),
        ("redis://127.0.0.1:6379/0", url.to_owned()),
    ] {
        assert!(text.contains(from), "{text}");
        text = text.replace(from, &to);
    }
    text += "\n[api]\nlisten = \"127.0.0.1:0\"\napi_keys = [\"an-operators-key-that-only-this-test-has\"]\n";
    std::fs::write(&file, text).unwrap();
    let replica = Replica::run(Replica::program(&file).dir(folder)).await;
    replica.ready().await;
    replica
}

/// A worker that listens: one of `nodes` counts it by `PUBSUB` with this word.
async fn worker(folder: &Path, url: &str, nodes: &[RedisServer], count: &str) -> Process {
    let worker = manage(folder, url, &["runworker", "acme.chat"]).start();
    eventually(PATIENCE * 2, "the worker listens", async || {
        let mut told = Vec::new();
        for node in nodes {
            let heard: Result<(String, u32), _> = node.ask(&["PUBSUB", count, "acme.chat"]).await;
            told.push(heard);
        }
        match told.iter().any(|heard| matches!(heard, Ok((_, 1)))) {
            true => Ok(()),
            false => Err(told),
        }
    })
    .await;
    worker
}

fn dial(replica: &Replica, room: &str, user: &str) -> Dial {
    let dial = Dial::new(replica.server, "127.0.0.1", &format!("/ws/chat/{room}/"));
    dial.token(&token::sign(KEY, &token::access(user)))
}

async fn says(socket: &mut Socket, frame: &serde_json::Value) {
    socket.send_text(&frame.to_string()).await;
}

#[tokio::test]
async fn the_example_of_a_worker_does_what_its_page_says() {
    let redis = RedisServer::start().await;
    does_what_its_page_says(&redis.url(), std::slice::from_ref(&redis), "NUMSUB").await;
}

#[tokio::test]
async fn the_example_of_a_worker_runs_on_a_cluster() {
    let cluster = Cluster::start().await;
    does_what_its_page_says(&cluster.url(), &cluster.nodes, "SHARDNUMSUB").await;
}

async fn does_what_its_page_says(url: &str, nodes: &[RedisServer], count: &str) {
    let dir = scratch("example");
    let folder = dir.path();
    set_up(folder, url);
    let replica = serve(folder, url).await;

    // Before there is a worker.
    let mut unserved = dial(&replica, "lobby", "1").open().await;
    let (code, reason) = unserved.closed().await;
    assert_eq!((code, word(&reason)), (4014, "unavailable"));
    replica.logged("no process listens to the channel").await;

    let process = worker(folder, url, nodes, count).await;
    let mut alice = dial(&replica, "lobby", "1").open().await;
    let mut bob = dial(&replica, "lobby", "2").open().await;
    // What a socket gets shows that it is in the room.
    says(&mut bob, &json!({"count": true})).await;
    assert_eq!(bob.next_json().await, json!({"users": 2}));
    says(&mut alice, &json!({"say": "hello"})).await;
    for socket in [&mut alice, &mut bob] {
        assert_eq!(
            socket.next_json().await,
            json!({"by": "alice", "said": "hello"})
        );
    }
    for wrong in ["no json", "7", "{}"] {
        bob.send_text(wrong).await;
        let answer = bob.next_json().await;
        assert!(answer["error"].is_string(), "{wrong}: {answer}");
    }
    says(&mut bob, &json!({"count": true})).await;
    assert_eq!(bob.next_json().await, json!({"users": 2}), "it goes on");

    let mut staff = dial(&replica, "staff", "1").open().await;
    says(&mut staff, &json!({"say": "secret"})).await;
    assert_eq!(staff.next_json().await["said"], "secret");
    let mut refused = dial(&replica, "staff", "2").open().await;
    assert_eq!(refused.closed().await, (4403, "for staff".to_owned()));

    bob.close(1000, "").await;
    assert_eq!(alice.next_json().await, json!({"left": "bob"}));
    process.signal(Signal::INT);
}
