//! A deployment that moves from one Redis to a cluster and back, by the commands of `docs/moving-to-a-cluster.md`.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::event::resume::{events, position, position_of, returning};
use crate::problem::Problem;
use crate::support::cluster::Cluster;
use crate::support::database::{ALICE, BOB};
use crate::support::django::python;
use crate::support::process::{Process, Program, find_program};
use crate::support::replica::Replica;
use crate::support::socket::Socket;
use crate::support::token::now;
use crate::support::{
    Database, Gateway, PATIENCE, RedisServer, Tenant, eventually, gateway, scratch, token,
};

const PAGE: &str = include_str!("../../../../docs/moving-to-a-cluster.md");
const PLAIN: &str = "/ws/plain/a/";
const KEPT: &str = "/ws/kept/a/";
/// Sends the events of its input through the project's layer.
const SENDS: &str = r#"
import json, sys
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

for line in sys.stdin:
    group, event = json.loads(line)
    async_to_sync(get_channel_layer().group_send)(group, event)
    print("sent", event["n"], flush=True)
"#;

/// The page's blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let begin = format!("```{language}\n");
    let blocks = PAGE.split(&begin).skip(1);
    blocks.filter_map(|rest| rest.split("```").next()).collect()
}

/// The addresses of both.
struct Sides {
    one: RedisServer,
    cluster: Cluster,
    folder: TempDir,
}

impl Sides {
    /// The page's script, until it is dropped.
    async fn copy(&self, is_forth: bool) -> Process {
        let [script] = blocks("sh")[..] else {
            panic!("one script");
        };
        let script = [
            ("-h 10.0.0.1 -p 6379", self.one.port()),
            ("-h 10.0.1.1 -p 6379", self.cluster.nodes[0].port()),
        ]
        .into_iter()
        .fold(script.to_owned(), |script, (address, port)| {
            assert!(script.contains(address), "{address}");
            script.replace(address, &format!("-h 127.0.0.1 -p {port}"))
        });
        let back = "copy cluster one 'lockgate:*:state'";
        assert!(script.contains(back));
        let script = match is_forth {
            true => script,
            false => script.replace("copy one cluster 'lockgate:*:state'", back),
        };
        let script = Program::new("the script", find_program("bash")).args(["-c", &script]);
        let script = script.start();
        passes(&script, 1).await;
        script
    }

    /// A back end with the layer class and the settings of the page.
    fn back_end(&self, tenant: &Tenant, is_forth: bool) -> Process {
        let [class, settings] = blocks("python")[..] else {
            panic!("a class and settings");
        };
        let swapped = |text: &str| match is_forth {
            true => text.to_owned(),
            false => text
                .replace("RedisPubSubChannelLayer", "THAT")
                .replace("RedisClusterChannelLayer", "RedisPubSubChannelLayer")
                .replace("THAT", "RedisClusterChannelLayer"),
        };
        let one = "redis://10.0.0.1:6379/0";
        let cluster = "redis+cluster://10.0.1.1:6379,10.0.1.2:6379";
        let settings = swapped(settings).replace("\"acme\"", &format!("\"{}\"", tenant.prefix));
        let settings = match is_forth {
            true => settings
                .replace(one, &self.one.url())
                .replace(cluster, &self.cluster.url()),
            false => settings
                .replace(cluster, &self.one.url())
                .replace(one, &self.cluster.url()),
        };
        let settings = format!(
            "SECRET_KEY = 'x'\nLOCKGATE = {{'TENANT': '{}'}}\n{settings}",
            tenant.name
        );
        let folder = self.folder.path();
        std::fs::create_dir_all(folder.join("chat")).unwrap();
        std::fs::write(folder.join("chat/layers.py"), swapped(class)).unwrap();
        std::fs::write(folder.join("of_the_page.py"), settings).unwrap();
        let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/django");
        Program::new("a back end", python())
            .args(["-B", "-c", SENDS])
            .dir(folder)
            .env("DJANGO_SETTINGS_MODULE", "of_the_page")
            .env("PYTHONPATH", app)
            .start()
    }
}

/// Waits until the script has made so many passes in all.
async fn passes(script: &Process, count: usize) {
    eventually(PATIENCE, "the script has copied", async || {
        let text = script.output.text();
        assert!(script.is_running(), "{text}");
        match text.matches("copied at").count() >= count {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await;
}

/// Waits for a pass that begins after now.
async fn next_pass(script: &Process) {
    let made = script.output.text().matches("copied at").count();
    passes(script, made + 2).await;
}

async fn send(back_end: &Process, group: &str, n: u64) {
    back_end.write_line(&json!([group, {"type": "t", "n": n}]).to_string());
    let sent = format!("sent {n}");
    let is_sent = |line: &str| (line == sent).then_some(());
    back_end.line(&sent, PATIENCE, is_sent).await;
}

async fn revoke(gateway: &Gateway, replica: &Replica, body: &Value) {
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let body = body.to_string();
    let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A token with this id, and what revokes it.
fn token_of(tenant: &Tenant, jti: &str) -> (String, Value) {
    let mut claims = token::access(ALICE);
    claims["jti"] = jti.into();
    let revokes = json!({"jti": jti, "exp": claims["exp"]});
    (tenant.sign(&claims), revokes)
}

async fn open(replica: &Replica, tenant: &Tenant, path: &str, token: &str) -> Socket {
    replica.dial(tenant, path).token(token).open().await
}

async fn is_refused(replica: &Replica, tenant: &Tenant, token: &str) {
    let refusal = replica.dial(tenant, PLAIN).token(token).refused().await;
    Problem::new(401, "token_revoked").is(&refusal, &tenant.name);
}

/// The page once said to copy with `redis-cli --cluster import`, which takes the keys away from the Redis in use: revoked tokens
/// opened sockets there, and what was revoked meanwhile was never copied.
#[tokio::test]
async fn a_move_to_a_cluster_and_back_loses_no_revocation_and_no_event() {
    let sides = Sides {
        one: RedisServer::start().await,
        cluster: Cluster::start().await,
        folder: scratch("moving"),
    };
    let mut gateway = gateway()
        .redis(&sides.one.url())
        .set("denylist.recheck", "1s")
        .set("server.drain.delay", "0s")
        .tenant("acme")
        .without_layer_kind()
        .users(&Database::sqlite().await)
        .with_toml("[[groups]]\nname = 'kept_<slug:room>'\nhistory = { size = 100, ttl = '10m' }")
        .route("path = 'ws/plain/<slug:room>/'\n groups = ['plain_{room}']")
        .route("path = 'ws/kept/<slug:room>/'\n groups = ['kept_{room}']\n resume = true")
        .start()
        .await;
    let tenant = gateway.tenant().clone();
    let bob = tenant.token(BOB);

    moves(&mut gateway, &sides, true, &bob).await;
    // Nothing that was there before helps on the way back.
    let () = sides.one.command(&["FLUSHALL"]).await;
    moves(&mut gateway, &sides, false, &bob).await;
    is_refused(gateway.replica(), &tenant, &bob).await;
}

/// Moves the only replica to the other side; `bob` is revoked on the way forth.
async fn moves(gateway: &mut Gateway, sides: &Sides, is_forth: bool, bob: &str) {
    let tenant = gateway.tenant().clone();
    let (early, revokes_early) = token_of(&tenant, &format!("early {is_forth}\r\n\"x\""));
    revoke(gateway, gateway.replica(), &revokes_early).await;
    let alice = tenant.token(ALICE);
    let mut old_plain = open(gateway.replica(), &tenant, PLAIN, &alice).await;
    let mut old_kept = open(gateway.replica(), &tenant, KEPT, &alice).await;
    position(&mut old_kept).await;

    let text = std::fs::read_to_string(&gateway.config).unwrap();
    let (one, cluster) = (sides.one.url(), sides.cluster.url());
    let text = match is_forth {
        true => text.replace(&one, &cluster),
        false => text.replace(&cluster, &one),
    };
    std::fs::write(&gateway.config, text).unwrap();
    gateway.add_replica().await;
    let (old, new) = (&gateway.replicas[0], &gateway.replicas[1]);
    new.ready().await;
    let script = sides.copy(is_forth).await;
    let back_end = sides.back_end(&tenant, is_forth);

    // What was revoked before, on both sides.
    is_refused(old, &tenant, &early).await;
    is_refused(new, &tenant, &early).await;
    if is_forth {
        later_cut_offs_win(gateway, &script, bob).await;
    }
    is_refused(old, &tenant, bob).await;
    is_refused(new, &tenant, bob).await;
    // What is revoked meanwhile, on one side and on the other.
    for (name, here, there) in [("old", old, new), ("new", new, old)] {
        let (late, revokes_late) = token_of(&tenant, &format!("late {name} {is_forth}"));
        let mut socket = open(there, &tenant, PLAIN, &late).await;
        revoke(gateway, here, &revokes_late).await;
        assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
        is_refused(here, &tenant, &late).await;
        is_refused(there, &tenant, &late).await;
    }

    // Events reach the sockets of both sides, once each.
    let mut new_plain = open(new, &tenant, PLAIN, &alice).await;
    for n in 1..=3 {
        send(&back_end, "plain_a", n).await;
        for socket in [&mut old_plain, &mut new_plain] {
            assert_eq!(socket.next_json().await["n"], n);
        }
        send(&back_end, "kept_a", n).await;
    }
    let last = events(&mut old_kept, 1..4).await;

    // The old replica drains, and its client comes back to the new side: told, and complete from there on.
    old.process.signal(Signal::TERM);
    for socket in [&mut old_plain, &mut old_kept] {
        let (code, reason) = socket.closed().await;
        assert_eq!(code, 1012, "{reason}");
    }
    let mut kept = returning(new, &tenant, KEPT, &[&last]).open().await;
    let told = kept.next_json().await;
    assert_eq!(told, json!({"type": "lockgate.gap", "group": "kept_a"}));
    let from = position(&mut kept).await;
    assert_eq!(from["recovered"], false, "{from}");
    send(&back_end, "kept_a", 4).await;
    assert_eq!(kept.next_json().await["n"], 4);
    drop(kept);
    send(&back_end, "kept_a", 5).await;
    let since = position_of(&from);
    let mut kept = returning(new, &tenant, KEPT, &[&since]).open().await;
    events(&mut kept, 4..6).await;
    assert_eq!(position(&mut kept).await["recovered"], true);
    assert!(new_plain.ping().await.is_empty());
    let unrecorded = new.metrics().await;
    let unrecorded = unrecorded.value("lockgate_events_unrecorded_total", &[]);
    assert_eq!(unrecorded, 0.0);

    old.process.exited(Duration::from_secs(30)).await;
    next_pass(&script).await;
    drop((script, back_end));
    gateway.replicas.remove(0);
    if is_forth {
        let clients: String = sides.one.command(&["CLIENT", "LIST"]).await;
        assert!(!clients.contains("name=lockgate"), "{clients}");
    }
}

/// A cut-off that was copied rises on either side, and does not fall.
async fn later_cut_offs_win(gateway: &Gateway, script: &Process, bob: &str) {
    let tenant = gateway.tenant();
    let (old, new) = (&gateway.replicas[0], &gateway.replicas[1]);
    let until = |second: i64| json!({"user_id": BOB, "issued_before": second});
    revoke(gateway, old, &until(now() - 7200)).await;
    next_pass(script).await;
    drop(open(new, tenant, PLAIN, bob).await);
    revoke(gateway, new, &until(now() + 60)).await;
    next_pass(script).await;
}
