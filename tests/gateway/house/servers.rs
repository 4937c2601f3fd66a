//! The test house itself: its servers start, end and come back, Django migrates and mints, before any gateway runs.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, MySqlConnection, PgConnection, SqliteConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::database::{ALICE, Database};
use crate::support::django::Django;
use crate::support::process::{Program, Reader};
use crate::support::proxy::{Line, Proxy};
use crate::support::publisher::msgpack;
use crate::support::{Publisher, RedisServer, browser, eventually, http, token};

#[tokio::test]
async fn a_redis_server_comes_back_on_its_port_after_a_kill() {
    let redis = RedisServer::start().await;
    let () = redis.command(&["SET", "a", "b"]).await;
    redis.kill();
    redis.ask::<String>(&["PING"]).await.unwrap_err();
    redis.restart().await;
    assert_eq!(redis.command::<Option<String>>(&["GET", "a"]).await, None);
    let () = redis.command(&["SET", "a", "c"]).await;
    redis.restart_with_data().await;
    assert_eq!(redis.command::<String>(&["GET", "a"]).await, "c");
}

#[tokio::test]
async fn a_frozen_redis_server_does_not_answer_until_it_thaws() {
    let redis = RedisServer::start().await;
    let mut connection = redis.connection().await.unwrap();
    redis.freeze();
    let ping = redis::cmd("PING");
    ping.query_async::<String>(&mut connection)
        .await
        .unwrap_err();
    redis.thaw();
    assert_eq!(redis.command::<String>(&["PING"]).await, "PONG");
}

#[tokio::test]
async fn every_engine_has_djangos_tables_with_alice_in_them() {
    const QUERY: &str = "SELECT id FROM auth_user WHERE username = 'alice'";
    let (postgres, mariadb, sqlite) = tokio::join!(
        Database::postgres(),
        Database::mariadb(),
        Database::sqlite()
    );
    let mut connection = PgConnection::connect(postgres.url()).await.unwrap();
    let row = connection.fetch_one(QUERY).await.unwrap();
    assert_eq!(sqlx::Row::get::<i32, _>(&row, 0).to_string(), ALICE);
    let mut connection = MySqlConnection::connect(mariadb.url()).await.unwrap();
    let row = connection.fetch_one(QUERY).await.unwrap();
    assert_eq!(sqlx::Row::get::<i32, _>(&row, 0).to_string(), ALICE);
    let mut connection = SqliteConnection::connect(sqlite.url()).await.unwrap();
    let row = connection.fetch_one(QUERY).await.unwrap();
    assert_eq!(sqlx::Row::get::<i64, _>(&row, 0).to_string(), ALICE);
}

#[tokio::test]
async fn each_test_has_a_database_of_its_own() {
    let (one, other) = (Database::postgres().await, Database::postgres().await);
    one.execute("UPDATE auth_user SET username = 'mallory' WHERE username = 'alice'")
        .await;
    other
        .execute(
            "INSERT INTO auth_group (name) SELECT username FROM auth_user WHERE username = 'alice'",
        )
        .await;
    let mut connection = PgConnection::connect(other.url()).await.unwrap();
    connection
        .fetch_one("SELECT 1 FROM auth_group")
        .await
        .unwrap();
}

#[tokio::test]
async fn django_mints_tokens_that_our_own_look_like() {
    let database = Database::sqlite().await;
    let key = "a signing key of thirty-two bytes or more";
    let django = Django::at(database.url()).signing_key(key).start().await;
    let real = django.access_token("alice").await;
    let made = token::sign(key, &token::access(ALICE));
    let decode = |token: &str| {
        let key = DecodingKey::from_secret(key.as_bytes());
        jsonwebtoken::decode::<Value>(token, &key, &Validation::new(Algorithm::HS256))
            .unwrap()
            .claims
    };
    let keys = |claims: &Value| {
        claims
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(&decode(&real)), keys(&decode(&made)));
    assert_eq!(decode(&real)["user_id"], ALICE);
}

#[tokio::test]
async fn django_has_users_with_uuids() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("db").display());
    let django = Django::at(&url).uuid_users().start().await;
    django.migrate().await;
    let user = django.create_user("dora", true).await;
    uuid::Uuid::parse_str(&user.id).unwrap();
    assert!(!django.access_token("dora").await.is_empty());
}

#[tokio::test]
async fn our_publisher_is_heard_by_channels_redis() {
    let redis = RedisServer::shared().await;
    let database = Database::sqlite().await;
    let prefix = "house-publisher";
    let django = Django::at(database.url())
        .layer(&redis.url(), prefix)
        .start()
        .await;
    let channel = django.listen("room").await;
    let event =
        json!({"type": "chat.message", "text": "äöü", "n": [1, -1, 70000, 1.5, null, true]});
    assert_eq!(
        Publisher::new(redis, prefix)
            .await
            .send("room", &event)
            .await,
        1
    );
    assert_eq!(django.receive(&channel).await, event);
    django
        .group_send("room", std::slice::from_ref(&event))
        .await;
    assert_eq!(django.receive(&channel).await, event);
}

#[test]
fn messagepack_is_as_python_writes_it() {
    let event = json!({"type": "x", "n": 200, "m": -200, "f": 0.5, "l": [null, true]});
    let python = b"\x85\xa4type\xa1x\xa1n\xcc\xc8\xa1m\xd1\xff\x38\xa1f\xcb\x3f\xe0\0\0\0\0\0\0\xa1l\x92\xc0\xc3";
    assert_eq!(msgpack(&event), python);
}

#[tokio::test]
async fn a_cut_proxy_ends_connections_and_an_open_one_passes_them() {
    let redis = RedisServer::shared().await;
    let proxy = Proxy::to(&redis.endpoint()).await;
    let client = redis::Client::open(format!("redis://{}", proxy.endpoint())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let ping = redis::cmd("PING");
    assert_eq!(
        ping.query_async::<String>(&mut connection).await.unwrap(),
        "PONG"
    );
    proxy.set(Line::Cut);
    ping.query_async::<String>(&mut connection)
        .await
        .unwrap_err();
    proxy.set(Line::Open);
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    proxy.set(Line::Clogged);
    ping.query_async::<String>(&mut connection)
        .await
        .unwrap_err();
}

/// A server that says its name to each connection, and then all that it hears.
async fn parrot(name: u8) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_u8(name).await.unwrap();
                let (mut from, mut to) = stream.split();
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
    });
    endpoint
}

#[tokio::test]
async fn a_proxy_delays_splits_resets_and_leads_elsewhere_and_loses_no_byte() {
    let proxy = Proxy::to(&parrot(b'a').await).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    let sent: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut answer = vec![0; sent.len()];
    let delay = Duration::from_millis(100);
    for line in [Line::Slow(delay), Line::Split, Line::Open] {
        proxy.set(line);
        let began = Instant::now();
        stream.write_all(&sent).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, sent, "{line:?}");
        assert!(
            line != Line::Slow(delay) || began.elapsed() >= delay * 2,
            "{:?}",
            began.elapsed()
        );
    }
    proxy.lead_to(&parrot(b'b').await);
    let mut other = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'b');
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    proxy.set(Line::Reset);
    let end = stream.read_u8().await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn output_that_is_not_read_fills_its_pipe_and_a_closed_one_ends_its_writer() {
    let process = Program::new("a writer", "yes").start();
    let deadline = Duration::from_secs(15);
    process
        .line("a line", deadline, |line| (line == "y").then_some(()))
        .await;
    process.output.set_reader(Reader::Paused);
    let mut before = 0;
    eventually(deadline, "no further line", async || {
        let now = process.output.text().len();
        tokio::time::sleep(Duration::from_millis(20)).await;
        match std::mem::replace(&mut before, now) == now {
            true => Ok(()),
            false => Err(now),
        }
    })
    .await;
    process.output.set_reader(Reader::Reading);
    eventually(deadline, "lines again", async || {
        match process.output.text().len() {
            now if now > before => Ok(()),
            now => Err(now),
        }
    })
    .await;
    process.output.set_reader(Reader::Gone);
    assert_eq!(process.exited(deadline).await.code(), None, "a signal");
}

#[tokio::test]
async fn output_can_be_waited_for_and_the_end_too() {
    let process = Program::new("a shell", "sh")
        .args(["-c", "read line; echo got $line; exit 3"])
        .start();
    process.write_line("something");
    let deadline = Duration::from_secs(5);
    let found = process.line("an echo", deadline, |line| {
        line.strip_prefix("got ").map(str::to_owned)
    });
    assert_eq!(found.await, "something");
    assert_eq!(process.exited(deadline).await.code(), Some(3));
    assert!(!process.is_running());
}

#[tokio::test]
async fn the_browser_runs_scripts() {
    let mut page = browser::Page::open("about:blank").await;
    page.wait_for("document.readyState === 'complete'").await;
    assert_eq!(page.evaluate("Promise.resolve(6 * 7)").await, 42);
}

#[tokio::test]
async fn the_http_client_hides_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 64];
        let n = stream.read(&mut request).await.unwrap();
        assert!(request[..n].starts_with(b"GET /x HTTP/1.1\r\nHost: "));
        let answer = b"HTTP/1.1 418 No\r\nA: b\r\nContent-Length: 2\r\n\r\nhi";
        stream.write_all(answer).await.unwrap();
        stream
    };
    let (answer, _stream) = tokio::join!(http::request(address, "GET", "/x", &[], ""), server);
    assert_eq!((answer.status, answer.body.as_str()), (418, "hi"));
    assert_eq!(answer.header("a"), Some("b"));
}
