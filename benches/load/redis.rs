//! A plain Redis client: a publisher, a bare subscriber and a link for commands, each over one TCP stream.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::shard_of;
use crate::stamp;

/// Length of an event's JSON without its type, and so of a frame's payload.
pub(crate) const EVENT_BYTES: usize = 200;
const MESSAGE_BYTES: usize = EVENT_BYTES - br#"{"message":""}"#.len();

/// A reply of Redis, owned.
#[derive(Debug)]
pub(crate) enum Reply {
    Int,
    Text(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// Returns the reply at the start of `bytes` and its length, once it is complete.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let line = std::str::from_utf8(&bytes[1..end])?;
        let mut used = end + 2;
        let reply = match bytes[0] {
            b'+' => Self::Text(line.into()),
            b':' => Self::Int,
            b'-' => bail!("Redis answers: {line}"),
            b'$' | b'*' if line == "-1" => Self::Nil,
            b'$' => {
                let length: usize = line.parse()?;
                let Some(text) = bytes.get(used..used + length + 2) else {
                    return Ok(None);
                };
                used += text.len();
                Self::Text(text[..length].into())
            }
            b'*' => {
                let mut items = Vec::new();
                for _ in 0..line.parse::<usize>()? {
                    let Some((item, length)) = Self::parse(&bytes[used..])? else {
                        return Ok(None);
                    };
                    items.push(item);
                    used += length;
                }
                Self::Array(items)
            }
            other => bail!("no reply starts with byte {other}"),
        };
        Ok(Some((reply, used)))
    }
}

/// Returns a command as RESP.
pub(crate) fn encode(arguments: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        out.extend(format!("${}\r\n", argument.len()).bytes());
        out.extend(*argument);
        out.extend(b"\r\n");
    }
    out
}

/// Returns the payload that Channels would publish for our event: msgpack, with the type first and the stamp at the end.
pub(crate) fn event_payload() -> Vec<u8> {
    let message = format!(
        "{}{:0width$}",
        "m".repeat(MESSAGE_BYTES - stamp::DIGITS),
        stamp::now(),
        width = stamp::DIGITS
    );
    let mut out = Vec::with_capacity(256);
    // Writing into a Vec cannot fail.
    rmp::encode::write_map_len(&mut out, 2).ok();
    for text in ["type", "bench.event", "message", &message] {
        rmp::encode::write_str(&mut out, text).ok();
    }
    out
}

/// Returns the frame payload that the gateway makes of [`event_payload`], from its end; for servers without a decoder.
pub(crate) fn rendered(payload: &[u8]) -> Vec<u8> {
    let message = &payload[payload.len().saturating_sub(MESSAGE_BYTES)..];
    [br#"{"message":""#, message, br#""}"#].concat()
}

fn open(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("no Redis")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A link that sends one command at a time and waits for its reply.
pub(crate) struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Link {
    pub(crate) fn connect(port: u16) -> Result<Self> {
        Ok(Self {
            stream: open(port)?,
            buffer: Vec::new(),
        })
    }

    /// Sends a command and waits for the reply.
    pub(crate) fn call(&mut self, arguments: &[&[u8]]) -> Result<Reply> {
        self.stream.write_all(&encode(arguments))?;
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some((reply, used)) = Reply::parse(&self.buffer)? {
                self.buffer.drain(..used);
                return Ok(reply);
            }
            let read = self.stream.read(&mut chunk)?;
            ensure!(read > 0, "Redis hung up");
            self.buffer.extend(&chunk[..read]);
        }
    }

    /// Returns a number of a section of `INFO`.
    pub(crate) fn info(&mut self, section: &str, field: &str) -> Result<f64> {
        let Reply::Text(text) = self.call(&[b"INFO", section.as_bytes()])? else {
            bail!("INFO is text");
        };
        let text = String::from_utf8(text)?;
        let value = |line: &str| line.strip_prefix(field)?.strip_prefix(':')?.parse().ok();
        let mut values = text.lines().filter_map(value);
        values
            .next()
            .with_context(|| format!("INFO {section} has no {field}"))
    }

    /// Returns the replicas that have all data of this server (`INFO replication`).
    pub(crate) fn replicas_online(&mut self) -> Result<usize> {
        let Reply::Text(text) = self.call(&[b"INFO", b"replication"])? else {
            bail!("INFO is text");
        };
        let text = String::from_utf8(text)?;
        let online = |line: &&str| line.starts_with("slave") && line.contains("state=online");
        Ok(text.lines().filter(online).count())
    }

    /// Returns the calls of each command so far (`INFO commandstats`), without the `INFO` of this program.
    pub(crate) fn command_counts(&mut self) -> Result<BTreeMap<String, u64>> {
        let Reply::Text(text) = self.call(&[b"INFO", b"commandstats"])? else {
            bail!("INFO is text");
        };
        let text = String::from_utf8(text)?;
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let Some(line) = line.strip_prefix("cmdstat_") else {
                continue;
            };
            let (name, rest) = line.split_once(":calls=").context("no calls")?;
            let calls = rest.split(',').next().unwrap_or("0");
            if name != "info" {
                counts.insert(name.to_uppercase(), calls.parse()?);
            }
        }
        Ok(counts)
    }
}

/// The gateway's script of histories. The load program asks for no answer but a number.
const RECORD: &str = concat!(
    include_str!("../../src/channel_layer/recorded/history.lua"),
    "\nrecord(KEYS, ARGV)\nreturn 1\n"
);

/// A group of tenant `bench` whose events are recorded, by its channel.
pub(crate) struct Record {
    channel: String,
    history: String,
    pub(crate) position: String,
    notices: String,
}

impl Record {
    /// The most events that are kept, for ten minutes each.
    pub(crate) const SIZE: u64 = 100;

    pub(crate) fn to(channel: &str) -> Self {
        let key = |kind: &str| format!("lockgate:bench:{kind}:{{{channel}}}");
        Self {
            channel: channel.to_owned(),
            history: key("history"),
            position: key("position"),
            notices: key("group"),
        }
    }
}

/// Publishes events without waiting; replies are read in the swarm's loop.
pub(crate) struct Publisher {
    /// One to each master of a cluster, or the one to a single Redis.
    lanes: Vec<Lane>,
    verb: &'static [u8],
    published: u64,
    answered: u64,
}

/// The stream to one server, with what is to be written to it.
struct Lane {
    stream: TcpStream,
    batch: Vec<u8>,
    /// The digest of [`RECORD`] in hexadecimal.
    script: Vec<u8>,
}

impl Publisher {
    /// Publishes to one Redis.
    pub(crate) fn connect(port: u16) -> Result<Self> {
        Self::open(&[port], b"PUBLISH")
    }

    /// Publishes to the masters of a cluster, each with its range of slots, on sharded channels.
    pub(crate) fn to_shards(ports: &[u16]) -> Result<Self> {
        Self::open(ports, b"SPUBLISH")
    }

    fn open(ports: &[u16], verb: &'static [u8]) -> Result<Self> {
        let lanes = ports.iter().map(|port| Lane::connect(*port));
        Ok(Self {
            lanes: lanes.collect::<Result<_>>()?,
            verb,
            published: 0,
            answered: 0,
        })
    }

    pub(crate) fn streams(&self) -> impl Iterator<Item = &TcpStream> {
        self.lanes.iter().map(|lane| &lane.stream)
    }

    /// Publishes one event to each of `channels`, all of a server in one write.
    pub(crate) fn publish<'a>(
        &mut self,
        channels: impl IntoIterator<Item = &'a str>,
    ) -> Result<()> {
        let verb = self.verb;
        for channel in channels {
            let command = encode(&[verb, channel.as_bytes(), &event_payload()]);
            self.lane_of(channel).batch.extend(command);
            self.published += 1;
        }
        self.write()
    }

    /// Records and publishes events of one group, all in one write.
    pub(crate) fn record(&mut self, group: &Record, events: u64) -> Result<()> {
        let size = Record::SIZE.to_string().into_bytes();
        let lane = self.lane_of(&group.channel);
        for _ in 0..events {
            let script: [&[u8]; 2] = [b"EVALSHA", &lane.script];
            let (event, channel) = (event_payload(), group.channel.as_bytes());
            let keys: [&[u8]; 3] = [b"2", group.history.as_bytes(), group.position.as_bytes()];
            let kept: [&[u8]; 3] = [b"00000000000000000000000000000000", &size, b"600000"];
            let told: [&[u8]; 3] = [group.notices.as_bytes(), channel, &event];
            let command = encode(&[&script[..], &keys, &kept, &told].concat());
            lane.batch.extend(command);
        }
        self.published += events;
        self.write()
    }

    fn lane_of(&mut self, channel: &str) -> &mut Lane {
        let at = match self.lanes.len() {
            1 => 0,
            shards => shard_of(channel, shards),
        };
        &mut self.lanes[at]
    }

    fn write(&mut self) -> Result<()> {
        for at in 0..self.lanes.len() {
            let mut written = 0;
            while written < self.lanes[at].batch.len() {
                let lane = &mut self.lanes[at];
                match lane.stream.write(&lane.batch[written..]) {
                    Ok(more) => written += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.read_replies()?;
                        std::thread::yield_now();
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            self.lanes[at].batch.clear();
        }
        Ok(())
    }

    /// Returns the number of publishes that Redis has not answered yet.
    pub(crate) fn unanswered(&self) -> u64 {
        self.published - self.answered
    }

    /// Reads the replies and counts them; each is one integer.
    pub(crate) fn read_replies(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            self.answered += lane.read_replies()?;
        }
        Ok(())
    }
}

impl Lane {
    fn connect(port: u16) -> Result<Self> {
        let loaded = Link::connect(port)?.call(&[b"SCRIPT", b"LOAD", RECORD.as_bytes()])?;
        let Reply::Text(script) = loaded else {
            bail!("SCRIPT LOAD answers a digest");
        };
        let stream = open(port)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            batch: Vec::new(),
            script,
        })
    }

    /// Returns the number of replies that have come.
    fn read_replies(&mut self) -> Result<u64> {
        let mut chunk = [0; 16 * 1024];
        let mut answered = 0;
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("Redis hung up on the publisher"),
                Ok(read) => {
                    let replies = &chunk[..read];
                    ensure!(!replies.contains(&b'-'), "Redis refuses to publish");
                    answered += replies.iter().filter(|&&byte| byte == b'\n').count() as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answered),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The bare subscriber, which does nothing but SUBSCRIBE.
pub(crate) struct Subscriber {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Subscriber {
    /// Subscribes and waits until Redis has acknowledged all channels.
    pub(crate) fn connect(port: u16, channels: &[String]) -> Result<Self> {
        let mut this = Self {
            stream: open(port)?,
            buffer: Vec::new(),
        };
        for channel in channels {
            this.subscribe(channel)?;
        }
        this.stream.set_nonblocking(true)?;
        Ok(this)
    }

    /// Subscribes to one more channel; only before the stream is read without waiting.
    fn subscribe(&mut self, channel: &str) -> Result<()> {
        self.stream
            .write_all(&encode(&[b"SUBSCRIBE", channel.as_bytes()]))?;
        let mut chunk = [0; 1024];
        loop {
            if let Some((_, used)) = Reply::parse(&self.buffer)? {
                self.buffer.drain(..used);
                return Ok(());
            }
            let read = self.stream.read(&mut chunk)?;
            self.buffer.extend(&chunk[..read]);
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Calls `on_payload` for each message that has arrived.
    pub(crate) fn read_messages(&mut self, mut on_payload: impl FnMut(&[u8])) -> Result<()> {
        self.read_with_channel(|_, payload| on_payload(payload))
    }

    /// Calls `on_message` with channel and payload of each message that has arrived.
    pub(crate) fn read_with_channel(
        &mut self,
        mut on_message: impl FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("Redis hung up on a subscriber"),
                Ok(read) => self.buffer.extend(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let mut at = 0;
            while let Some((reply, used)) = Reply::parse(&self.buffer[at..])? {
                at += used;
                if let Reply::Array(items) = &reply
                    && let [_, Reply::Text(channel), Reply::Text(payload)] = &items[..]
                {
                    on_message(channel, payload);
                }
            }
            self.buffer.drain(..at);
        }
    }
}
