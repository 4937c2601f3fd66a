//! The other noisy neighbours: a separate process that wastes what tenants share, one way at a time.
//!
//! It belongs to the noisy tenant alone: its tokens, its Redis keys, its calls. What comes back is read and not judged,
//! since a bound of the gateway may refuse it. It obeys one command on standard input, `begin MILLISECONDS PAUSE`, and answers
//! with the number of its acts; a pause in milliseconds after each act is for runs that measure nothing.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::flood::tenant;
use crate::http::{Api, status_of};
use crate::process::{LOAD_CORE, Process, give_precedence};
use crate::redis::{Link, encode};
use crate::world::{API_KEY, Ticket};

/// The first argument of this program when it is the nuisance.
pub(crate) const NUISANCE: &str = "__nuisance";
/// Clients that act at the same time, each in a thread.
const CLIENTS: usize = 16;
/// Connections that send nothing, or half a head.
const HALF_OPEN: usize = 2_000;
/// Numbers of a large event: 1 MB of JSON.
const NUMBERS: usize = 200_000;
/// Sockets with an unfinished message, and the bytes of it.
const PARTIAL: usize = 400;
const UNFINISHED: usize = 60_000;
/// Sockets that do not read.
const SLOW: u64 = 50;
/// The bytes of a value that a gateway reads, and of an event for those that do not read it.
const LARGE: usize = 32 << 20;
const BULK: usize = 20_000;
/// Commands to Redis in one write.
const BATCH: usize = 64;
/// The longest wait for an answer, which a bound may keep back.
const PATIENCE: Duration = Duration::from_secs(2);

/// The ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nuisance {
    Connects,
    RefusedConnects,
    HalfOpenConnections,
    ControlMessages,
    ApiCalls,
    LargeEvents,
    LargeBatches,
    LargeValues,
    SlowReaders,
    PartialMessages,
    Pings,
}

impl Nuisance {
    pub(crate) const ALL: [Self; 11] = [
        Self::Connects,
        Self::RefusedConnects,
        Self::HalfOpenConnections,
        Self::ControlMessages,
        Self::ApiCalls,
        Self::LargeEvents,
        Self::LargeBatches,
        Self::LargeValues,
        Self::SlowReaders,
        Self::PartialMessages,
        Self::Pings,
    ];

    /// The name of its row.
    pub(crate) fn row(self) -> &'static str {
        match self {
            Self::Connects => "quiet tenant's p99 beside connects",
            Self::RefusedConnects => "quiet tenant's p99 beside refused connects",
            Self::HalfOpenConnections => "quiet tenant's p99 beside half-open connections",
            Self::ControlMessages => "quiet tenant's p99 beside control messages",
            Self::ApiCalls => "quiet tenant's p99 beside API calls",
            Self::LargeEvents => "quiet tenant's p99 beside events of 1 MB",
            Self::LargeBatches => "quiet tenant's p99 beside batches of 1 MB in chunks",
            Self::LargeValues => "quiet tenant's p99 beside large values",
            Self::SlowReaders => "quiet tenant's p99 beside slow readers",
            Self::PartialMessages => "quiet tenant's p99 beside partial messages",
            Self::Pings => "quiet tenant's p99 beside pings",
        }
    }

    fn word(self) -> String {
        format!("{self:?}")
    }
}

/// A handle of the load program.
pub(crate) struct Handle {
    _process: Process,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Handle {
    /// Starts the process; it does nothing yet.
    pub(crate) fn start(kind: Nuisance, ports: [u16; 3]) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Process::spawn(LOAD_CORE, &program, |command| {
            command
                .args([NUISANCE, &kind.word()])
                .args(ports.map(|port| port.to_string()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
        })?;
        let commands = process.child().stdin.take().context("no stdin")?;
        let stdout = process.child().stdout.take().context("no stdout")?;
        Ok(Self {
            _process: process,
            commands,
            answers: BufReader::new(stdout),
        })
    }

    /// Lets it begin, and returns at once.
    pub(crate) fn begin(&mut self, lasting: Duration, pause: Duration) -> Result<()> {
        let (lasting, pause) = (lasting.as_millis(), pause.as_millis());
        writeln!(self.commands, "begin {lasting} {pause}")?;
        Ok(self.commands.flush()?)
    }

    /// Waits for its end; returns the number of its acts.
    pub(crate) fn done(&mut self) -> Result<u64> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the nuisance ended");
        Ok(line.trim().parse()?)
    }
}

/// The main function of the nuisance: its kind, and the ports of Redis, sockets and API.
pub(crate) fn run(kind: &str, ports: [u16; 3]) -> Result<()> {
    let kind = Nuisance::ALL.into_iter().find(|known| known.word() == kind);
    let kind = kind.context("no such nuisance")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let ["begin", millis, pause] = words[..] else {
            bail!("no such command: {line}");
        };
        let pause = Duration::from_millis(pause.parse()?);
        if pause.is_zero() {
            give_precedence()?;
        }
        let run = Run {
            until: Instant::now() + Duration::from_millis(millis.parse()?),
            pause,
            acts: AtomicU64::new(0),
        };
        act(kind, ports, &run)?;
        println!("{}", run.acts.into_inner());
    }
    Ok(())
}

/// One run of a nuisance.
struct Run {
    until: Instant,
    pause: Duration,
    acts: AtomicU64,
}

impl Run {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Counts acts, and waits for the pause.
    fn acted(&self, count: u64) {
        self.acts.fetch_add(count, Ordering::Relaxed);
        std::thread::sleep(self.pause);
    }
}

fn act(kind: Nuisance, ports: [u16; 3], run: &Run) -> Result<()> {
    let [redis, sockets, api] = ports;
    match kind {
        Nuisance::Connects => by_many(run, |n| connect(sockets, &request("ws", n)?)),
        Nuisance::RefusedConnects => by_many(run, |n| connect(sockets, &forged(n)?)),
        Nuisance::HalfOpenConnections => half_open(sockets, run),
        Nuisance::ControlMessages => control(redis, run),
        Nuisance::ApiCalls => by_many(run, |_| call(api, run)),
        Nuisance::LargeEvents => large_events(sockets, api, &large_event(), run),
        Nuisance::LargeBatches => large_events(sockets, api, &large_batch(), run),
        Nuisance::LargeValues => {
            let mut link = Link::connect(redis)?;
            let key = format!("lockgate:{}:deny:all", tenant());
            link.call(&[b"SET", key.as_bytes(), &vec![b'7'; LARGE]])?;
            by_many(run, |n| connect(sockets, &request("ws", n)?))?;
            link.call(&[b"DEL", key.as_bytes()]).map(drop)
        }
        Nuisance::SlowReaders => slow_readers(redis, sockets, run),
        Nuisance::PartialMessages => partial(sockets, run),
        Nuisance::Pings => by_many(run, |n| pings(sockets, n, run)),
    }
}

/// Repeats an act in some threads; one that fails is one that a bound has cut.
fn by_many(run: &Run, act: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS as u64 {
            let act = &act;
            scope.spawn(move || {
                let mut turn = 0;
                while run.goes_on() {
                    turn += 1;
                    if act(turn * CLIENTS as u64 + client).is_err() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    run.acted(1);
                }
            });
        }
    });
    Ok(())
}

fn request(route: &str, n: u64) -> Result<Vec<u8>> {
    let user = n % 1_000 + 1;
    Ticket {
        tenant: &tenant(),
        route,
        n,
        user,
        token: user,
    }
    .request()
}

/// A request whose token another key signed: the last letter of the signature is another.
fn forged(n: u64) -> Result<Vec<u8>> {
    let mut request = request("ws", n)?;
    let end = request.windows(9).position(|part| part == b" HTTP/1.1");
    // The letter before the last, since the last one has bits that do not count.
    let letter = end.context("a request line")? - 2;
    request[letter] = if request[letter] == b'A' { b'B' } else { b'A' };
    Ok(request)
}

/// A connect, and its end without TIME_WAIT.
fn connect(port: u16, request: &[u8]) -> Result<()> {
    status_of(port, request).map(drop)
}

fn dial(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn half_open(port: u16, run: &Run) -> Result<()> {
    let mut held = VecDeque::new();
    while run.goes_on() {
        match dial(port) {
            Ok(mut stream) => {
                if held.len() % 2 == 0 {
                    stream.write_all(b"GET /ws/1/ HTTP/1.1\r\nHost: ").ok();
                }
                held.push_back(stream);
                run.acted(1);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        if held.len() > HALF_OPEN {
            held.pop_front();
        }
    }
    Ok(())
}

/// Writes commands to Redis in batches, and reads as many answers.
fn commands(redis: u16, command: &[u8], batch: usize, pause: Duration, run: &Run) -> Result<()> {
    let mut stream = dial(redis)?;
    // A run that measures nothing is about correctness, not about load.
    let batch = if run.pause.is_zero() {
        batch
    } else {
        batch.min(8)
    };
    let batch_bytes = command.repeat(batch);
    let mut answers = [0; 16 * 1024];
    while run.goes_on() {
        stream.write_all(&batch_bytes)?;
        let mut answered = 0;
        while answered < batch {
            let read = stream.read(&mut answers)?;
            ensure!(read > 0, "Redis hung up");
            answered += answers[..read].iter().filter(|&&b| b == b'\n').count();
        }
        run.acted(batch as u64);
        std::thread::sleep(pause);
    }
    Ok(())
}

fn control(redis: u16, run: &Run) -> Result<()> {
    let channel = format!("lockgate:{}:control", tenant());
    let list = br#"{"v":1,"op":"list","limit":1}"#;
    let command = encode(&[b"PUBLISH", channel.as_bytes(), list]);
    commands(redis, &command, BATCH, Duration::ZERO, run)
}

/// Lists sockets on a connection that is kept, until the end.
fn call(port: u16, run: &Run) -> Result<()> {
    let mut api = Api::connect(port)?;
    let path = format!("/v1/tenants/{}/connections?limit=1000", tenant());
    while run.goes_on() {
        api.call("GET", &path, "")?;
        run.acted(1);
    }
    Ok(())
}

/// Returns the head of a call of the noisy tenant with a JSON body, up to the fields of the body's length.
fn head(path: &str) -> String {
    format!(
        "POST /v1/tenants/{}/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n\
         Connection: close\r\nContent-Type: application/json\r\n",
        tenant()
    )
}

/// Returns an event of many numbers, which takes long to read and to write.
fn numbers() -> String {
    let numbers = vec!["1e15"; NUMBERS].join(",");
    format!(r#"{{"type":"bench.event","message":[{numbers}]}}"#)
}

fn large_event() -> String {
    let (head, body) = (head("groups/bench/send"), numbers());
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// As a batch, and without a length.
fn large_batch() -> String {
    let event = numbers();
    let body = format!(r#"{{"messages":[{{"group":"bench","event":{event}}}]}}"#);
    let (head, length) = (head("send"), body.len());
    format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
}

/// Repeats a call that publishes to a socket, which takes the events.
fn large_events(sockets: u16, api: u16, call: &str, run: &Run) -> Result<()> {
    let mut reader = open(sockets, 1)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut frames = vec![0; 1 << 20];
            while run.goes_on() {
                // Without an event for some time there is nothing to read.
                if reader.read(&mut frames).is_ok_and(|read| read == 0) {
                    break;
                }
            }
        });
        by_many(run, |_| {
            let status = status_of(api, call.as_bytes())?;
            ensure!(status == 200, "the API answered {status}");
            Ok(())
        })
    })
}

fn open(port: u16, n: u64) -> Result<TcpStream> {
    let mut stream = dial(port)?;
    stream.write_all(&request("ws", n)?)?;
    let mut head = [0; 4096];
    let read = stream.read(&mut head)?;
    ensure!(head[..read].starts_with(b"HTTP/1.1 101"), "refused");
    Ok(stream)
}

/// Sockets that do not read, and events for them; those that are closed come back.
fn slow_readers(redis: u16, port: u16, run: &Run) -> Result<()> {
    let channel = format!("{}__group__bench", tenant());
    let mut event = Vec::new();
    rmp::encode::write_map_len(&mut event, 2)?;
    for text in ["type", "bench.event", "message", &"b".repeat(BULK)] {
        rmp::encode::write_str(&mut event, text)?;
    }
    let command = encode(&[b"PUBLISH", channel.as_bytes(), &event]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = VecDeque::new();
            for n in 0.. {
                if !run.goes_on() {
                    break;
                }
                held.extend(open(port, n).ok());
                if held.len() as u64 > SLOW {
                    held.pop_front();
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        let pause = Duration::from_millis(5);
        commands(redis, &command, 1, pause, run)
    })
}

/// Sends pings without pause and reads the answers, until the connection ends.
fn pings(port: u16, n: u64, run: &Run) -> Result<()> {
    let mut stream = open(port, n)?;
    let pings = [0x89, 0x80, 0, 0, 0, 0].repeat(if run.pause.is_zero() { 10_000 } else { 10 });
    let mut answers = stream.try_clone()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut frames = [0; 16 * 1024];
            while answers.read(&mut frames).is_ok_and(|read| read > 0) {}
        });
        while run.goes_on() && !reader.is_finished() && stream.write_all(&pings).is_ok() {
            run.acted(1);
        }
        stream.shutdown(std::net::Shutdown::Both).ok();
    });
    Ok(())
}

/// Sockets with a message that does not end; those that are closed come back.
fn partial(port: u16, run: &Run) -> Result<()> {
    // A text that goes on, masked with zeros.
    let length = u16::try_from(UNFINISHED)?.to_be_bytes();
    let mut fragment = vec![0x01, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
    fragment.extend(std::iter::repeat_n(b'p', UNFINISHED));
    let mut held = VecDeque::new();
    for n in 0.. {
        if !run.goes_on() {
            break;
        }
        let begun = open(port, n).and_then(|mut stream| {
            stream.write_all(&fragment)?;
            Ok(stream)
        });
        match begun {
            Ok(stream) => {
                held.push_back(stream);
                run.acted(1);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        if held.len() > PARTIAL {
            held.pop_front();
        }
    }
    Ok(())
}
