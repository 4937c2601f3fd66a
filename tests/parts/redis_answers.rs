//! Answers of a Redis server that are longer than any that the gateway asks for.

use std::sync::Arc;

use lockgate::config::Secret;
use lockgate::error::Dependency;
use lockgate::stores::redis::{RedisStore, RedisUrl};

use crate::users::servers::Server;

fn store(server: &Server) -> Arc<RedisStore> {
    let url = Secret::new(format!("redis://127.0.0.1:{}/0", server.port));
    RedisStore::new(&RedisUrl::parse(&url).unwrap(), Dependency::Redis).unwrap()
}

fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
}

/// Before: the store held each of them whole, whoever had written it.
#[tokio::test]
async fn an_answer_that_is_too_long_ends_its_link_with_a_reason_and_the_next_link_serves() {
    let server = Server::redis();
    let store = store(&server);
    for (key, last) in [("legal", "16777215"), ("long", "50331647")] {
        let write = command(&["SETRANGE", key, last, "x"]);
        let _: u64 = store.query("set", &write).await.unwrap();
    }
    // More than a million values. Each call takes a fraction of a command's time limit.
    let fill = "for i = 1, 100000 do redis.call('RPUSH', KEYS[1], i) end";
    for _ in 0..11 {
        let _: redis::Value = store
            .query("eval", &command(&["EVAL", fill, "1", "many"]))
            .await
            .unwrap();
    }
    let legal: Vec<u8> = store
        .query("get", &command(&["GET", "legal"]))
        .await
        .unwrap();
    assert_eq!(legal.len(), 16 << 20);
    for read in [&["GET", "long"][..], &["LRANGE", "many", "0", "-1"]] {
        let link = store.link_after(0).await;
        let answer = store.query::<redis::Value>("get", &command(read)).await;
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("longer than 24 MiB"), "{read:?}: {error}");
        assert!(store.link_after(link).await > link);
        let known: u64 = store
            .query("exists", &command(&["EXISTS", "long"]))
            .await
            .unwrap();
        assert_eq!(known, 1);
    }
}
