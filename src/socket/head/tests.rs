//! Tests over real sockets: the answer of a refused client, and the arrival of a served one.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::half_open::HalfOpen;
use super::*;
use crate::budget::{HeldKind, MemoryBudget};

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A client's connection, and the reading of its head by a server with this configuration.
async fn connect(config: ServerConfig) -> (TcpStream, JoinHandle<Result<Arrival, NoRequest>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let reader = HeadReader::new(&config);
    let (mut place, _) = HalfOpen::new(1, 1, Arc::default()).begin(0).unwrap();
    let reading = tokio::spawn(async move {
        let deadline = reader.deadline();
        let first = reader.first_bytes(&stream, deadline).await;
        let begun = (stream, first.ok_or(NoRequest::Cut)?);
        reader.read(begun, peer.ip(), deadline, &mut place).await
    });
    (client, reading)
}

/// Returns the answer that the client reads after it sent `bytes`, and the server's outcome.
async fn refused(config: ServerConfig, bytes: &[u8]) -> (String, NoRequest) {
    let (mut client, reading) = connect(config).await;
    client.write_all(bytes).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    (answer, reading.await.unwrap().unwrap_err())
}

fn behind_proxies(trusted: &str) -> ServerConfig {
    ServerConfig {
        client_address: ClientAddress::ProxyProtocol,
        trusted_proxies: vec![trusted.parse().unwrap()],
        ..ServerConfig::default()
    }
}

#[tokio::test]
async fn the_head_is_read_and_what_came_with_it_is_kept() {
    let (mut client, reading) = connect(ServerConfig::default()).await;
    client.write_all(&HEAD[..7]).await.unwrap();
    client
        .write_all(&[&HEAD[7..], b"early"].concat())
        .await
        .unwrap();
    let mut arrival = reading.await.unwrap().unwrap();
    assert_eq!(arrival.bytes, HEAD);
    assert_eq!(arrival.head.headers["host"], "a");
    client.write_all(b"later").await.unwrap();
    drop(client);
    let mut behind = arrival.early.to_vec();
    arrival.stream.read_to_end(&mut behind).await.unwrap();
    assert_eq!(behind, b"earlylater");
}

#[tokio::test]
async fn a_refused_client_reads_why_even_if_it_still_sends() {
    let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
    bytes.extend([b'n'; 200_000]);
    let (answer, no_request) = refused(ServerConfig::default(), &bytes).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(answer.contains(r#""code":"request_too_large""#), "{answer}");
    assert_eq!(no_request, NoRequest::Refused(Refusal::HeadTooLarge));
}

#[tokio::test]
async fn a_head_that_does_not_end_in_time_is_answered_and_silence_is_not() {
    let hurried = ServerConfig {
        handshake_timeout: Duration::from_millis(50),
        ..ServerConfig::default()
    };
    let (answer, no_request) = refused(hurried.clone(), b"GET / HT").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(no_request, NoRequest::Refused(Refusal::HandshakeTimeout));
    assert_eq!(refused(hurried, b"").await, (String::new(), NoRequest::Cut));
}

#[tokio::test]
async fn a_long_request_that_finds_no_memory_is_refused() {
    let budget = Arc::new(MemoryBudget::default());
    budget.set_most(4);
    budget.hold(HeldKind::Messages, 6);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(5000));
    client.write_all(long.as_bytes()).await.unwrap();
    let reader = HeadReader::new(&ServerConfig::default());
    let (mut place, _) = HalfOpen::new(1, 1, budget).begin(0).unwrap();
    let reading = reader.read(
        (stream, BytesMut::new()),
        address.ip(),
        reader.deadline(),
        &mut place,
    );
    let mut answer = String::new();
    let (read, _) = tokio::join!(reading, client.read_to_string(&mut answer));
    assert_eq!(read.unwrap_err(), NoRequest::Refused(Refusal::Overloaded));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

/// Before, each silent connection had a buffer of 2 KiB, since a new connection counts as readable for a moment.
#[tokio::test]
async fn a_silent_connection_has_no_buffer() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let reader = HeadReader::new(&ServerConfig::default());
    let first = tokio::spawn(async move { reader.first_bytes(&stream, reader.deadline()).await });
    // Time in which a moment of false readiness passes: it must not be taken for bytes.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!first.is_finished());
    client.write_all(b"GET").await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), &b"GET"[..]);
}

#[tokio::test]
async fn a_client_that_speaks_tls_is_cut() {
    let (mut client, reading) = connect(ServerConfig::default()).await;
    client.write_all(b"\x16\x03\x01").await.unwrap();
    assert_eq!(reading.await.unwrap().unwrap_err(), NoRequest::Cut);
}

#[tokio::test]
async fn a_proxy_names_the_client() {
    let (mut client, reading) = connect(behind_proxies("127.0.0.0/8")).await;
    client
        .write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n")
        .await
        .unwrap();
    client.write_all(HEAD).await.unwrap();
    let arrival = reading.await.unwrap().unwrap();
    let source: SocketAddr = "192.0.2.1:1234".parse().unwrap();
    assert_eq!(arrival.proxied, Some(source));
    assert_eq!(arrival.bytes, HEAD);
}

#[tokio::test]
async fn without_a_trusted_proxy_s_header_the_connection_is_cut() {
    for (row, trusted) in [
        ("no header", "127.0.0.0/8"),
        ("untrusted peer", "10.0.0.0/8"),
    ] {
        let (mut client, reading) = connect(behind_proxies(trusted)).await;
        client.write_all(HEAD).await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap_err(), NoRequest::Cut, "{row}");
    }
}
