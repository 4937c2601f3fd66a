//! The floors: servers that do only the work that no server can avoid, in the kernel and with Redis.
//!
//! Each runs as a separate process on the server's core, so that its CPU time is read as the gateway's is.
//! [`serve`] obeys commands on standard input: `accept N`, `write ROUNDS INTERVAL_US FRAMES`.
//! [`relay`] is a whole gateway without users, limits or metrics. It takes the gateway's place in the self-test.

use std::collections::HashMap;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags};

use crate::frames::text_frame;
use crate::process::{Process, SERVER_CORE};
use crate::redis::{EVENT_BYTES, Link, Subscriber, rendered};

/// The first argument of this program when it is a floor.
pub(crate) const FLOOR: &str = "__floor";
/// The first argument of this program when it stands in for the gateway.
pub(crate) const RELAY: &str = "__relay";

const ANSWER: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A handle of the load program to a floor process.
pub(crate) struct Floor {
    pub(crate) process: Process,
    pub(crate) port: u16,
    commands: ChildStdin,
    answers: std::io::BufReader<ChildStdout>,
}

impl Floor {
    /// Starts a floor.
    pub(crate) fn start() -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Process::spawn(SERVER_CORE, &program, |command| {
            command
                .arg(FLOOR)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
        })?;
        let commands = process.child().stdin.take().context("no stdin")?;
        let stdout = process.child().stdout.take().context("no stdout")?;
        let mut answers = std::io::BufReader::new(stdout);
        let port = read_line(&mut answers)?.parse()?;
        Ok(Self {
            process,
            port,
            commands,
            answers,
        })
    }

    /// Sends a command; the answer comes when it is done.
    pub(crate) fn command(&mut self, text: &str) -> Result<()> {
        writeln!(self.commands, "{text}")?;
        Ok(self.commands.flush()?)
    }

    /// Waits for the answer to the last command.
    pub(crate) fn done(&mut self) -> Result<()> {
        let answer = read_line(&mut self.answers)?;
        ensure!(answer == "done", "the floor says {answer:?}");
        Ok(())
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(reader.read_line(&mut line)? > 0, "the floor ended");
    Ok(line.trim_end().to_owned())
}

/// Starts the stand-in for the gateway; returns the process and its port.
pub(crate) fn start_relay(redis_port: u16) -> Result<(Process, u16)> {
    start_server(&[RELAY, &redis_port.to_string()])
}

/// Starts this program as the server that these arguments name; it prints its port when it listens.
pub(crate) fn start_server(arguments: &[&str]) -> Result<(Process, u16)> {
    let program = std::env::current_exe()?;
    let mut process = Process::spawn(SERVER_CORE, &program, |command| {
        command.args(arguments).stdout(Stdio::piped())
    })?;
    let stdout = process.child().stdout.take().context("no stdout")?;
    let port = read_line(&mut std::io::BufReader::new(stdout))?.parse()?;
    Ok((process, port))
}

/// The main function of a floor process.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let mut sockets = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["accept", count] => {
                for _ in 0..count.parse::<usize>()? {
                    sockets.push(accept(&listener, None)?.0);
                }
            }
            ["write", rounds, interval, frames] => {
                let interval = Duration::from_micros(interval.parse()?);
                write_rounds(&mut sockets, rounds.parse()?, interval, frames.parse()?)?;
            }
            _ => bail!("no such command: {line}"),
        }
        println!("done");
    }
    Ok(())
}

/// Runs the bare loop: `frames` frames in one `write` per socket and round.
fn write_rounds(
    sockets: &mut [TcpStream],
    rounds: u32,
    interval: Duration,
    frames: usize,
) -> Result<()> {
    let bytes = text_frame(&[b'x'; EVENT_BYTES]).repeat(frames);
    let start = Instant::now();
    for round in 1..=rounds {
        for socket in &mut *sockets {
            write_whole(socket, &bytes)?;
        }
        std::thread::sleep((start + interval * round).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Writes all bytes, as a rule in one `write`. It waits if the kernel's buffer is full, which only happens without an
/// interval.
fn write_whole(socket: &mut TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)];
                rustix::event::poll(&mut fds, None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Accepts, reads and parses the head, sends one MGET if there is a Redis, and writes the 101. Returns also the path.
fn accept(listener: &TcpListener, redis: Option<&mut Link>) -> Result<(TcpStream, String)> {
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut head = [0; 4096];
    let mut filled = 0;
    let path = loop {
        let read = socket.read(&mut head[filled..])?;
        ensure!(read > 0, "the client cut the handshake");
        filled += read;
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        if request.parse(&head[..filled])?.is_complete() {
            break request.path.unwrap_or("/").to_owned();
        }
    };
    if let Some(link) = redis {
        let user = path.split('/').nth(2).context("the path has no number")?;
        ask_redis(link, user.parse()?)?;
    }
    socket.write_all(ANSWER)?;
    socket.set_nonblocking(true)?;
    Ok((socket, path))
}

/// The keys that the gateway reads for an authenticated connect: denylist, user, generation.
pub(crate) fn keys_of(user: &str, jti: &str) -> [String; 5] {
    [
        format!("lockgate:bench:deny:jti:{jti}"),
        format!("lockgate:bench:deny:user:{user}"),
        "lockgate:bench:deny:all".to_owned(),
        format!("lockgate:bench:user:{user}"),
        format!("lockgate:bench:usergen:{user}"),
    ]
}

fn ask_redis(link: &mut Link, user: u64) -> Result<()> {
    let keys = keys_of(&user.to_string(), &crate::world::jti(user));
    let mut arguments: Vec<&[u8]> = vec![b"MGET"];
    arguments.extend(keys.iter().map(|key| key.as_bytes()));
    link.call(&arguments)?;
    Ok(())
}

/// The main function of the stand-in: accepts, subscribes, and writes what Redis sends, one `write` per frame.
pub(crate) fn relay(redis_port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let channels = crate::world::all_channels();
    let mut subscriber = Subscriber::connect(redis_port, &channels)?;
    let mut link = Link::connect(redis_port)?;
    let mut members: HashMap<String, Vec<TcpStream>> = HashMap::new();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(subscriber.stream().as_fd(), PollFlags::IN),
        ];
        rustix::event::poll(&mut fds, None)?;
        let [connecting, publishing] = fds.map(|fd| !fd.revents().is_empty());
        if connecting {
            let (socket, path) = accept(&listener, Some(&mut link))?;
            let channel = crate::world::channel_of_path(&path);
            members.entry(channel).or_default().push(socket);
        }
        if publishing {
            subscriber.read_with_channel(|channel, payload| {
                let channel = String::from_utf8_lossy(channel);
                if let Some(sockets) = members.get_mut(&*channel) {
                    let frame = text_frame(&rendered(payload));
                    // The write fails if the client has reset the socket.
                    sockets.retain_mut(|socket| write_whole(socket, &frame).is_ok());
                }
            })?;
        }
    }
}
