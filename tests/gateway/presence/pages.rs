//! The API and the command line: pages, counts, and what others wrote into the keys.

use std::time::Duration;

use super::{HEALED, LAYERS, ask, enter, found, house, present};
use crate::support::database::{ALICE, BOB};
use crate::support::process::Program;
use crate::support::replica::LOCKGATE;
use crate::support::{PATIENCE, RedisServer, eventually};

/// The index of a room on a layer.
fn index(gateway: &crate::support::Gateway, layer: &str, room: &str) -> String {
    let tenant = gateway.tenant();
    let channel = match layer {
        "core" => format!("{}:group:chat_{room}", tenant.prefix),
        _ => format!("{}__group__chat_{room}", tenant.prefix),
    };
    tenant.redis_key(&format!("presence:{{{channel}}}"))
}

/// Writes `users` users of a replica that lives for an hour.
async fn write_users(redis: &RedisServer, gateway: &crate::support::Gateway, users: u32) {
    let (replica, index) = ("f".repeat(32), index(gateway, "pubsub", "a"));
    let list = gateway.tenant().redis_key("presence-replicas");
    let script = "local now = redis.call('TIME')[1] * 1000 \
        for i = 1, tonumber(ARGV[1]) do local id = string.format('%06d', i) \
        redis.call('HSET', KEYS[1] .. ':' .. ARGV[2], id, '{\"sockets\":2,\"user\":{\"n\":' .. i .. '}}') \
        redis.call('ZADD', KEYS[1] .. ':users', 0, id) end \
        redis.call('HSET', KEYS[1], ARGV[2], 2 * ARGV[1]) redis.call('ZADD', KEYS[2], now + 12000, ARGV[2])";
    let users = users.to_string();
    let _: () = redis
        .command(&["EVAL", script, "2", &index, &list, &users, &replica])
        .await;
}

#[tokio::test]
async fn ten_thousand_users_are_read_page_by_page() {
    let redis = RedisServer::start().await;
    let gateway = house(1, "pubsub", "").redis(&redis.url()).start().await;
    write_users(&redis, &gateway, 10_000).await;
    let (mut seen, mut rest) = (Vec::new(), "?limit=999".to_owned());
    loop {
        let page = ask(&gateway, 0, "a", &rest).await;
        assert_eq!(page["sockets"], 20_000);
        for user in page["users"].as_array().expect("users") {
            assert_eq!(user["sockets"], 2);
            seen.push(user["id"].as_str().expect("an id").to_owned());
        }
        let Some(next) = page["next"].as_str() else {
            break;
        };
        rest = format!("?limit=999&cursor={next}");
    }
    let all: Vec<String> = (1..=10_000).map(|id| format!("{id:06}")).collect();
    assert_eq!(seen, all);
    let count = ask(&gateway, 0, "a", "/count").await;
    assert_eq!(
        count,
        serde_json::json!({"sockets": 20_000, "users": 10_000})
    );
    // The writer of these users does not renew its sign of life.
    present(&gateway, (0, "a"), &[], HEALED).await;
}

#[tokio::test]
async fn what_others_wrote_into_the_keys_harms_nothing_and_goes() {
    for layer in LAYERS {
        let redis = RedisServer::start().await;
        let gateway = house(1, layer, "fields = ['username']")
            .redis(&redis.url())
            .start()
            .await;
        let index = index(&gateway, layer, "a");
        let list = gateway.tenant().redis_key("presence-replicas");
        let stranger = "e".repeat(32);
        let long = "x".repeat(100_000);
        let theirs = format!("{index}:{stranger}");
        let users = format!("{index}:users");
        for command in [
            &["SET", &list, "no list"][..],
            &[
                "HSET", &index, "epoch", "{}", "changes", "many", "short", "7", &stranger, "-5",
            ],
            &[
                "HSET",
                &theirs,
                "9",
                "garbage",
                "8",
                &long,
                "\u{0}",
                "{}",
                BOB,
                "{\"sockets\":1}",
            ],
            &["ZADD", &users, "0", "9", "0", "8", "7", "\u{1f600}"],
            &["SET", &format!("{index}:leaving"), "a text"],
        ] {
            let _: redis::Value = redis.command(command).await;
        }
        let _alice = enter(&gateway, 0, "a", ALICE).await;
        // Strangers are shown at no time, and do not count once it is sure that they do not exist.
        eventually(HEALED, "only Alice", async || {
            let (users, sockets) = found(&gateway, 0, "a").await.expect("Redis answers");
            assert!(users.keys().all(|user| user == ALICE), "{users:?}");
            if sockets == 1 && users.len() == 1 {
                Ok(())
            } else {
                Err((users, sockets))
            }
        })
        .await;
        // Her own keys become something else: she is there again after the next look.
        let own: Vec<String> = redis
            .command(&["KEYS", &format!("{index}:????????????????????????????????")])
            .await;
        let own = own
            .into_iter()
            .find(|key| *key != theirs)
            .expect("her entry");
        let _: redis::Value = redis.command(&["SET", &own, "a text"]).await;
        let _: redis::Value = redis.command(&["SET", &index, "a text"]).await;
        let bob = enter(&gateway, 0, "a", BOB).await;
        present_users(&gateway, &[ALICE, BOB]).await;
        // Someone lets her leave while she is there: the next write passes over it.
        let leaving = format!("{index}:leaving");
        let _: u64 = redis.command(&["ZADD", &leaving, "0", ALICE]).await;
        drop(bob);
        eventually(PATIENCE, "the next write", async || {
            let left: Option<f64> = redis.command(&["ZSCORE", &leaving, ALICE]).await;
            left.map_or(Ok(()), Err)
        })
        .await;
        let (here, _) = found(&gateway, 0, "a").await.expect("Redis answers");
        assert!(here.contains_key(ALICE), "{here:?}");
        // Someone takes all users out of the set: the next write finds it.
        let _: u64 = redis.command(&["DEL", &users]).await;
        let _bob = enter(&gateway, 0, "a", BOB).await;
        present_users(&gateway, &[ALICE, BOB]).await;
        let count = ask(&gateway, 0, "a", "/count").await;
        assert_eq!(count, serde_json::json!({"sockets": 2, "users": 2}));
    }
}

/// They counted, those with a score of their own turned pages back, and one among those who leave took a user off the list.
#[tokio::test]
async fn ids_that_others_write_are_neither_listed_nor_counted() {
    for layer in LAYERS {
        let redis = RedisServer::start().await;
        let gateway = house(1, layer, "").redis(&redis.url()).start().await;
        let _alice = enter(&gateway, 0, "a", ALICE).await;
        let _bob = enter(&gateway, 0, "a", BOB).await;
        present(&gateway, (0, "a"), &[(ALICE, 1), (BOB, 1)], PATIENCE).await;
        let users = format!("{}:users", index(&gateway, layer, "a"));
        let leaving = format!("{}:leaving", index(&gateway, layer, "a"));
        for command in [
            &[
                "ZADD", &users, "0", "0", "0", "19", "-3", "zz", "4", "!", "7", BOB,
            ][..],
            &["ZADD", &leaving, "0", ALICE, "9e15", "19", "9e15", "nobody"],
        ] {
            let _: u64 = redis.command(command).await;
        }
        let no_texts = "redis.call('ZADD', KEYS[1], 0, '\\255', 0, '19\\200')";
        let _: redis::Value = redis.command(&["EVAL", no_texts, "1", &users]).await;
        let truth = serde_json::json!({"sockets": 2, "users": 2});
        assert_eq!(ask(&gateway, 0, "a", "/count").await, truth, "{layer}");
        let (mut seen, mut rest) = (Vec::new(), "?limit=1".to_owned());
        for _ in 0..10 {
            let page = ask(&gateway, 0, "a", &rest).await;
            let listed = page["users"].as_array().expect("users").iter();
            seen.extend(listed.map(|user| user["id"].clone()));
            match page["next"].as_str() {
                Some(next) => rest = format!("?limit=1&cursor={next}"),
                None => rest.clear(),
            }
            if rest.is_empty() {
                break;
            }
        }
        assert!(rest.is_empty(), "{layer}: pages without an end: {seen:?}");
        assert_eq!(seen, [ALICE, BOB], "{layer}");
    }
}

/// The count looks at no more ids than its bound, and the sockets bound what it says of the rest.
#[tokio::test]
async fn a_huge_set_that_others_wrote_is_not_counted() {
    let redis = RedisServer::start().await;
    let gateway = house(1, "pubsub", "").redis(&redis.url()).start().await;
    let _alice = enter(&gateway, 0, "a", ALICE).await;
    present(&gateway, (0, "a"), &[(ALICE, 1)], PATIENCE).await;
    let users = format!("{}:users", index(&gateway, "pubsub", "a"));
    let script =
        "for i = 1, 50000 do redis.call('ZADD', KEYS[1], 0, string.format('+%06d', i)) end";
    let _: redis::Value = redis.command(&["EVAL", script, "1", &users]).await;
    let scripts = async || -> u64 {
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let calls = stats
            .split_once("cmdstat_evalsha:calls=")
            .expect("scripts")
            .1;
        calls
            .split(',')
            .next()
            .expect("a number")
            .parse()
            .expect("a number")
    };
    let before = scripts().await;
    let count = ask(&gateway, 0, "a", "/count").await;
    assert_eq!(count, serde_json::json!({"sockets": 1, "users": 1}));
    let taken = scripts().await - before;
    assert!(taken < 20, "{taken} scripts");
}

async fn present_users(gateway: &crate::support::Gateway, users: &[&str]) {
    eventually(PATIENCE, "the users", async || {
        let (found, _) = found(gateway, 0, "a").await.expect("Redis answers");
        if found.keys().eq(users) {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
}

#[tokio::test]
async fn wrong_questions_are_refused_with_the_reason() {
    let gateway = house(1, "pubsub", "")
        .route("path = 'ws/chat/<slug:room>/'\ngroups = ['chat_{room}', 'all']")
        .start()
        .await;
    let tenant = &gateway.tenant().name;
    for (rest, status, code) in [
        ("chat_a/presence?limit=0", 400, "query_not_valid"),
        ("chat_a/presence?limit=1001", 400, "query_not_valid"),
        ("chat_a/presence?page=1", 400, "query_not_valid"),
        ("chat%20a/presence", 400, "group_name_not_valid"),
        ("all/presence", 404, "presence_not_kept"),
        ("all/presence/count", 404, "presence_not_kept"),
    ] {
        let path = format!("/v1/tenants/{tenant}/groups/{rest}");
        let answer = gateway
            .replica()
            .api(&gateway.api_key, "GET", &path, "")
            .await;
        let found = (answer.status, answer.json()["code"].clone());
        assert_eq!(found, (status, code.into()), "{rest}");
    }
    // A room that was never entered.
    let empty = serde_json::json!({"sockets": 0, "users": []});
    assert_eq!(
        ask(&gateway, 0, "empty", "?cursor=%00%F0%9F%98%80").await,
        empty
    );
}

#[tokio::test]
async fn the_command_line_lists_and_counts() {
    let gateway = house(1, "pubsub", "fields = ['username']").start().await;
    let _alice = enter(&gateway, 0, "a", ALICE).await;
    present(&gateway, (0, "a"), &[(ALICE, 1)], PATIENCE).await;
    let url = format!("http://{}", gateway.replica().api);
    let run = async |more: &[&str]| {
        let key = gateway.key_file.display().to_string();
        let arguments = [
            "presence",
            "--tenant",
            &gateway.tenant().name,
            "--group",
            "chat_a",
        ];
        let program = Program::new("lockgate presence", LOCKGATE)
            .args(arguments)
            .args(["--url", &url, "--api-key-file", &key])
            .args(more);
        let process = program.start();
        assert!(process.exited(PATIENCE).await.success());
        eventually(Duration::from_secs(5), "the output", async || {
            let text = process.output.text();
            if text.is_empty() { Err(()) } else { Ok(text) }
        })
        .await
    };
    let listed = run(&[]).await;
    assert!(
        listed.contains("1 socket; 1 user ") && listed.contains("\"alice\""),
        "{listed}"
    );
    let counted = run(&["--count", "--json"]).await;
    assert!(counted.contains(r#"{"sockets":1,"users":1}"#), "{counted}");
}
