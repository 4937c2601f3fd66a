//! A cluster of two masters of which one takes everything and delivers nothing: the far side of a split brain.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockgate::stores::redis::cluster::slot_of;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::support::*;

/// The first slot of the second master.
const HALF: u16 = 8192;

/// A master that knows as much as the links need.
struct Master {
    /// The answer to CLUSTER SHARDS.
    map: String,
    /// What is published here, as the message that its subscribers get; `None`: it delivers nothing.
    published: Option<broadcast::Sender<(String, String)>>,
    /// The subscriber links that were made.
    links: Arc<AtomicU64>,
}

/// A bulk string. Each char of a text here stands for one byte.
fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.chars().count())
}

/// The map of two masters on these ports.
fn map(ports: [u16; 2]) -> String {
    let shard = |port: u16, first: u16, last: u16| {
        let [slots, nodes, name, ip, role, master] =
            ["slots", "nodes", "port", "ip", "role", "master"].map(bulk);
        let node = format!(
            "*6\r\n{name}:{port}\r\n{ip}{}{role}{master}",
            bulk("127.0.0.1")
        );
        format!("*4\r\n{slots}*2\r\n:{first}\r\n:{last}\r\n{nodes}*1\r\n{node}")
    };
    let [one, other] = ports;
    format!(
        "*2\r\n{}{}",
        shard(one, 0, HALF - 1),
        shard(other, HALF, 16383)
    )
}

impl Master {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(self.clone().answer(stream));
        }
    }

    async fn answer(self: Arc<Self>, stream: TcpStream) {
        let (read, mut write) = stream.into_split();
        let (commands, mut next) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut read = BufReader::new(read);
            while let Some(words) = command(&mut read).await {
                if commands.send(words).is_err() {
                    return;
                }
            }
        });
        let mut subscribed = HashSet::new();
        // Of a deaf master it stays silent.
        let silent = broadcast::channel(1).0;
        let mut published = self.published.as_ref().unwrap_or(&silent).subscribe();
        loop {
            let out = tokio::select! {
                words = next.recv() => match words {
                    Some(words) => self.reply(&words, &mut subscribed),
                    None => return,
                },
                Ok((channel, message)) = published.recv() => match subscribed.contains(&channel) {
                    true => message,
                    false => continue,
                },
            };
            let out: Vec<u8> = out.chars().map(|byte| byte as u8).collect();
            if write.write_all(&out).await.is_err() {
                return;
            }
        }
    }

    fn reply(&self, words: &[String], subscribed: &mut HashSet<String>) -> String {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["PING"] if subscribed.is_empty() => "+PONG\r\n".to_owned(),
            ["PING"] => format!("*2\r\n{}{}", bulk("pong"), bulk("")),
            ["CLIENT", ..] => "+OK\r\n".to_owned(),
            ["ROLE"] => format!("*3\r\n{}:0\r\n*0\r\n", bulk("master")),
            ["CLUSTER", "SHARDS"] => self.map.clone(),
            ["SSUBSCRIBE", ref channels @ ..] => {
                if subscribed.is_empty() {
                    self.links.fetch_add(1, Ordering::Relaxed);
                }
                let mut out = String::new();
                for channel in channels {
                    subscribed.insert((*channel).to_owned());
                    let count = subscribed.len();
                    let confirmed = bulk("ssubscribe") + &bulk(channel);
                    out += &format!("*3\r\n{confirmed}:{count}\r\n");
                }
                out
            }
            ["SPUBLISH", channel, payload] => {
                let message = bulk("smessage") + &bulk(channel) + &bulk(payload);
                if let Some(published) = &self.published {
                    let message = (channel.to_owned(), format!("*3\r\n{message}"));
                    drop(published.send(message));
                }
                ":1\r\n".to_owned()
            }
            _ => format!("-ERR unknown command {words:?}\r\n"),
        }
    }
}

/// Reads an array of bulk strings; `None` at the end of the connection.
async fn command(read: &mut BufReader<OwnedReadHalf>) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..number(read).await? {
        let mut word = vec![0; number(read).await? + 2];
        read.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(word.into_iter().map(char::from).collect());
    }
    Some(words)
}

/// Reads the line before an array or a bulk string.
async fn number(read: &mut BufReader<OwnedReadHalf>) -> Option<usize> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim_end().parse().ok()
}

/// A group of the tenant `acme` whose channel lies in these slots.
fn group_in(slots: std::ops::Range<u16>) -> String {
    let names = (0..).map(|number| format!("g{number}"));
    let mut here =
        names.filter(|group| slots.contains(&slot_of(channel("acme", group).as_bytes())));
    here.next().unwrap()
}

/// Fault 13 on a cluster: the deaf shard is noticed as one server is, and its groups alone are told.
#[tokio::test]
async fn a_shard_that_delivers_nothing_is_told_to_its_own_groups() {
    let mut listeners = Vec::new();
    for _ in 0..2 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let [one, other] = [0, 1].map(|node: usize| listeners[node].local_addr().unwrap().port());
    let links = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
    let mut masters = Vec::new();
    for (node, listener) in listeners.into_iter().enumerate() {
        let master = Master {
            map: map([one, other]),
            published: (node == 0).then(|| broadcast::channel(1024).0),
            links: links[node].clone(),
        };
        masters.push(tokio::spawn(Arc::new(master).serve(listener)));
    }
    let tenant = replica(&format!("redis+cluster://127.0.0.1:{one}")).tenant("acme");
    let (hears, deaf) = (group_in(0..HALF), group_in(HALF..16384));
    tenant.join(&hears).await;
    tenant.join(&deaf).await;

    let started = Instant::now();
    let noticed = timeout(Duration::from_secs(7), tenant.inbox.filled());
    assert!(noticed.await.is_ok());
    assert_eq!(tenant.heard().await, Heard::Missed(deaf.clone()));
    let took = started.elapsed();
    println!("noticed after {took:?}");
    assert!(took > Duration::from_millis(500), "{took:?}");
    // The next link to it is as deaf, and the other shard is served all the time.
    for number in 0..2 {
        tenant.send(&hears, number).await;
        assert_eq!(tenant.heard().await, Heard::Number(hears.clone(), number));
        assert_eq!(tenant.heard().await, Heard::Missed(deaf.clone()));
    }
    let [of_hears, of_deaf] = links.map(|links| links.load(Ordering::Relaxed));
    assert_eq!(of_hears, 1);
    assert!(of_deaf >= 3, "{of_deaf}");
    masters.iter().for_each(|master| master.abort());
}
