//! The floor of concurrent connects: the least work of a server that admits only valid tokens. It accepts, parses the
//! head, verifies the HMAC, reads the claims, sends one MGET of five keys, and writes the 101. With a database it also reads
//! each user there, and writes the record to Redis, as a connect must whose user is in no cache.
//!
//! It checks no claim, host, origin or user, keeps no index, and counts nothing. It has one worker, as the gateway.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use redis::aio::MultiplexedConnection;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use self::users::Users;
use crate::floor::{self, keys_of};
use crate::process::Process;
use crate::world::KEY;

mod users;

/// The first argument of this program when it is this floor.
pub(crate) const CONNECT_FLOOR: &str = "__connect_floor";

/// Starts the floor beside the Redis at `redis_port`, with the URL of the users' database if it is to read them; returns the
/// process and its port.
pub(crate) fn start(redis_port: u16, database: Option<&str>) -> Result<(Process, u16)> {
    let port = redis_port.to_string();
    let mut arguments = vec![CONNECT_FLOOR, &port];
    arguments.extend(database);
    floor::start_server(&arguments)
}

/// The main function of the floor process.
pub(crate) fn run(redis_port: u16, database: Option<String>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    // The accept loop runs on the worker, as the gateway's does.
    runtime.block_on(async move { tokio::spawn(serve(redis_port, database)).await? })
}

async fn serve(redis_port: u16, database: Option<String>) -> Result<()> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{redis_port}/0"))?;
    let link = client.get_multiplexed_async_connection().await?;
    let users = match database {
        Some(url) => Some(Users::open(&url, link.clone()).await?),
        None => None,
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        let (link, users, key) = (link.clone(), users.clone(), key.clone());
        tokio::spawn(async move {
            // An error needs no report here: the client fails the run.
            connect(stream, link, users, key).await.ok();
        });
    }
}

async fn connect(
    mut stream: TcpStream,
    mut link: MultiplexedConnection,
    users: Option<Users>,
    key: hmac::Key,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(2048);
    let (user, jti, accept) = loop {
        ensure!(
            stream.read_buf(&mut head).await? > 0,
            "the client cut the handshake"
        );
        if let Some(found) = read_head(&head, &key)? {
            break found;
        }
    };
    let mut command = redis::cmd("MGET");
    command.arg(&keys_of(&user, &jti));
    let answers: Vec<Option<Vec<u8>>> = command.query_async(&mut link).await?;
    ensure!(answers.len() == 5, "{} answers", answers.len());
    if let Some(users) = users {
        users.read(user.parse()?).await?;
    }
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    drop((head, answers, answer));
    // The socket stays open until its client leaves.
    stream.read_u8().await.ok();
    Ok(())
}

/// Returns user and id of the token, and the answer to the client's key; `None` while the head is incomplete.
fn read_head(head: &[u8], key: &hmac::Key) -> Result<Option<(String, String, String)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(head)?.is_partial() {
        return Ok(None);
    }
    let path = request.path.context("no path")?;
    let (_, token) = path.split_once("?token=").context("no token")?;
    let (message, signature) = token.rsplit_once('.').context("no signature")?;
    let signature = URL_SAFE_NO_PAD.decode(signature)?;
    ensure!(
        hmac::verify(key, message.as_bytes(), &signature).is_ok(),
        "the token is not signed by the key"
    );
    let (_, payload) = message.split_once('.').context("no payload")?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let text = |name: &str| -> Result<String> {
        Ok(claims[name].as_str().context("no such claim")?.to_owned())
    };
    let client_key = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))
        .context("no key")?;
    let digest = Sha1::new()
        .chain_update(client_key.value)
        .chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        .finalize();
    Ok(Some((
        text("user_id")?,
        text("jti")?,
        STANDARD.encode(digest),
    )))
}
