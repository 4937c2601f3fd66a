//! The clients: thousands of raw sockets in one epoll loop that reads and counts frames.
//!
//! The same loop reads gateway and floor, each as a [`Side`], so that reading has the same effect on both writers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::arrivals::{Latencies, Side, Tally};
use crate::frames::{Opcode, Parser};
use crate::redis::{Publisher, Subscriber};
use crate::stamp;

/// The longest time for an answer before the run fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// Handshakes under way if nothing paces them; enough to keep a gateway busy.
const AT_ONCE: usize = 64;
const PUBLISHER: u64 = u64::MAX;
const SUBSCRIBER: u64 = u64::MAX - 1;

/// The state of a socket of [`Swarm::open`].
#[derive(Default)]
pub(crate) struct Openings {
    /// Neither open nor refused yet.
    pub(crate) under_way: usize,
    pub(crate) opened: u64,
    refused: u64,
    first_refusal: Option<String>,
}

struct Conn {
    stream: TcpStream,
    side: Side,
    parser: Parser,
    /// Before the 101 has come.
    opening: Option<Opening>,
    goodbye: Goodbye,
    /// Complete text and binary frames.
    frames: u64,
}

struct Opening {
    request: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
}

/// The permission of the server to close a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    Unwanted,
    /// The server may close it, with this code.
    Wanted(u16),
    /// The server has closed it, with the wanted code.
    Seen,
}

impl Conn {
    fn new(stream: TcpStream, side: Side, opening: Option<Opening>) -> Self {
        Self {
            stream,
            side,
            parser: Parser::default(),
            opening,
            goodbye: Goodbye::Unwanted,
            frames: 0,
        }
    }

    /// Sends the rest of the request. An error is reported when the answer is read.
    fn send_request(&mut self) {
        if let Some(opening) = &mut self.opening
            && let Some(rest) = opening.request.get(opening.sent..)
            && !rest.is_empty()
        {
            opening.sent += self.stream.write(rest).unwrap_or(0);
        }
    }
}

/// The loop with its sockets and its Redis links.
pub(crate) struct Swarm {
    epoll: OwnedFd,
    conns: Vec<Option<Conn>>,
    scratch: Box<[u8]>,
    tallies: [Tally; 3],
    openings: Openings,
    /// Index and time of the wanted close frames.
    goodbyes: Vec<(usize, u64)>,
    pub(crate) publisher: Publisher,
    subscriber: Option<Subscriber>,
    latencies: Option<Latencies>,
}

impl Swarm {
    /// Creates an empty swarm with a publisher to the Redis at `redis_port`.
    pub(crate) fn new(redis_port: u16) -> Result<Self> {
        Self::publishing(Publisher::connect(redis_port)?)
    }

    /// Creates an empty swarm with this publisher.
    pub(crate) fn publishing(publisher: Publisher) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = EventFlags::IN | EventFlags::ET;
        for stream in publisher.streams() {
            epoll::add(&epoll, stream, EventData::new_u64(PUBLISHER), flags)?;
        }
        Ok(Self {
            epoll,
            conns: Vec::new(),
            scratch: vec![0; 64 * 1024].into(),
            tallies: Default::default(),
            openings: Openings::default(),
            goodbyes: Vec::new(),
            publisher,
            subscriber: None,
            latencies: None,
        })
    }

    /// Adds a bare subscriber; its messages count for [`Latencies::subscriber`].
    pub(crate) fn subscribe(&mut self, redis_port: u16, channels: &[String]) -> Result<()> {
        let subscriber = Subscriber::connect(redis_port, channels)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(
            &self.epoll,
            subscriber.stream(),
            EventData::new_u64(SUBSCRIBER),
            flags,
        )?;
        self.subscriber = Some(subscriber);
        Ok(())
    }

    /// Ends the bare subscriber's link.
    pub(crate) fn unsubscribe(&mut self) {
        self.subscriber = None;
    }

    /// Opens one socket: connect, request, 101. Frames that came with the 101 are counted.
    pub(crate) fn connect(&mut self, side: Side, port: u16, request: &[u8]) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request)?;
        let mut head = [0; 4096];
        let mut filled = 0;
        let end = loop {
            let read = stream.read(&mut head[filled..]).context("no answer")?;
            ensure!(read > 0, "the server cut the handshake");
            filled += read;
            if let Some(at) = head[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(filled < head.len(), "the answer's head is too long");
        };
        if !head.starts_with(b"HTTP/1.1 101") {
            bail!("refused: {}", String::from_utf8_lossy(&head[..filled]));
        }
        stream.set_nonblocking(true)?;
        let token = self.conns.len() as u64;
        let flags = EventFlags::IN | EventFlags::ET | EventFlags::RDHUP;
        epoll::add(&self.epoll, &stream, EventData::new_u64(token), flags)?;
        self.conns.push(Some(Conn::new(stream, side, None)));
        if filled > end {
            self.take(token as usize, &head[end..filled]);
        }
        Ok(())
    }

    /// Begins to open one socket and returns its index at once. [`Swarm::turn`] continues the handshake, and
    /// [`Swarm::openings`] returns its state.
    pub(crate) fn open(&mut self, side: Side, port: u16, request: Vec<u8>) -> Result<usize> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()) {
            Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => {
                return Err(error.into());
            }
            _ => {}
        }
        let stream = TcpStream::from(socket);
        let index = self.conns.len();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET | EventFlags::RDHUP;
        let data = EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &stream, data, flags)?;
        let opening = Opening {
            request,
            sent: 0,
            head: Vec::new(),
        };
        self.conns
            .push(Some(Conn::new(stream, side, Some(opening))));
        self.openings.under_way += 1;
        Ok(index)
    }

    /// Opens one socket for each request, a few at a time; fails if one is refused.
    pub(crate) fn open_all(
        &mut self,
        side: Side,
        requests: impl IntoIterator<Item = Result<(u16, Vec<u8>)>>,
    ) -> Result<()> {
        for request in requests {
            let (port, request) = request?;
            self.open(side, port, request)?;
            self.pump_openings(AT_ONCE)?;
        }
        self.pump_openings(0)
    }

    /// Reads until at most `left` sockets of [`Swarm::open`] are under way; fails if one is refused.
    pub(crate) fn pump_openings(&mut self, left: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.openings.under_way > left {
            self.turn(deadline)?;
            self.check_open()?;
            ensure!(Instant::now() < deadline, "a socket does not open");
        }
        Ok(())
    }

    /// Returns the states of the sockets of [`Swarm::open`].
    pub(crate) fn openings(&self) -> &Openings {
        &self.openings
    }

    /// Permits the server to close this socket with this code.
    pub(crate) fn want_goodbye(&mut self, index: usize, code: u16) {
        if let Some(Some(conn)) = self.conns.get_mut(index) {
            conn.goodbye = Goodbye::Wanted(code);
        }
    }

    /// Returns the arrival time of the expected close frame of this socket, as [`stamp::now`] counts.
    pub(crate) fn goodbye(&self, index: usize) -> Option<u64> {
        let found = self.goodbyes.iter().rev().find(|(of, _)| *of == index);
        found.map(|(_, at)| *at)
    }

    /// Returns the number of sockets opened so far, a mark for [`Swarm::close_from`].
    pub(crate) fn mark(&self) -> usize {
        self.conns.len()
    }

    /// Resets all sockets opened since `mark`, without leaving TIME_WAIT behind.
    pub(crate) fn close_from(&mut self, mark: usize) {
        self.conns.drain(mark..).flatten().for_each(reset);
    }

    /// Resets one socket; returns false if it was not open yet.
    pub(crate) fn close(&mut self, index: usize) -> bool {
        let Some(conn) = self.conns.get_mut(index).and_then(Option::take) else {
            return false;
        };
        let is_open = conn.opening.is_none();
        self.openings.under_way -= usize::from(!is_open);
        reset(conn);
        is_open
    }

    /// Fails unless each socket opened since `mark` has had so many frames.
    pub(crate) fn check_each(&self, mark: usize, frames: u64) -> Result<()> {
        let others = self.conns[mark..].iter().flatten();
        let mut others = others.map(|conn| conn.frames).filter(|&had| had != frames);
        match others.next() {
            None => Ok(()),
            Some(had) => bail!(
                "one socket had {had} frames, not {frames}, and {} others too",
                others.count()
            ),
        }
    }

    /// Returns the arrivals so far.
    pub(crate) fn tally(&self, side: Side) -> &Tally {
        &self.tallies[side as usize]
    }

    /// Starts to record latencies; [`Swarm::end_latencies`] returns them.
    pub(crate) fn begin_latencies(&mut self) {
        self.latencies = Some(Latencies::default());
    }

    /// Returns the latencies recorded since [`Swarm::begin_latencies`].
    pub(crate) fn end_latencies(&mut self) -> Latencies {
        self.latencies.take().unwrap_or_default()
    }

    /// Reads until `until`.
    pub(crate) fn pump_until(&mut self, until: Instant) -> Result<()> {
        loop {
            self.turn(until)?;
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Reads until `side` has `frames` frames in all; fails after too long a time, or if a socket was closed.
    pub(crate) fn pump_frames(&mut self, side: Side, frames: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.tally(side).frames < frames {
            self.turn(deadline)?;
            self.check_open()?;
            let missing = frames.saturating_sub(self.tally(side).frames);
            ensure!(
                missing == 0 || Instant::now() < deadline,
                "{missing} frames did not arrive on the side of the {side:?}"
            );
        }
        Ok(())
    }

    /// Fails if the server closed a socket.
    pub(crate) fn check_open(&self) -> Result<()> {
        for tally in &self.tallies {
            ensure!(
                tally.closed == 0,
                "the server closed {} sockets; the first with {}",
                tally.closed,
                tally.first_close.as_deref().unwrap_or("no close frame")
            );
        }
        ensure!(
            self.openings.refused == 0,
            "the server refused {} sockets; the first so: {}",
            self.openings.refused,
            self.openings.first_refusal.as_deref().unwrap_or("cut")
        );
        Ok(())
    }

    /// Waits once for events, at most until `until`, and reads the ready sockets.
    pub(crate) fn turn(&mut self, until: Instant) -> Result<()> {
        let mut events = [const { None::<u64> }; 256];
        let count = self.ready(until, &mut events)?;
        for token in events.iter().take(count).flatten() {
            match *token {
                PUBLISHER => self.publisher.read_replies()?,
                SUBSCRIBER => self.read_subscriber()?,
                token => self.read_socket(token as usize),
            }
        }
        Ok(())
    }

    /// Waits with `ppoll`, whose timeout has nanoseconds, and then asks epoll without waiting.
    fn ready(&self, until: Instant, tokens: &mut [Option<u64>; 256]) -> Result<usize> {
        let mut events = Vec::with_capacity(tokens.len());
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spare = rustix::buffer::spare_capacity(&mut events);
        if retried(epoll::wait(&self.epoll, spare, Some(&at_once)))?.is_none() || events.is_empty()
        {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::from_borrowed_fd(self.epoll.as_fd(), PollFlags::IN)];
            retried(rustix::event::poll(&mut fds, Some(&timeout)))?;
            let spare = rustix::buffer::spare_capacity(&mut events);
            retried(epoll::wait(&self.epoll, spare, Some(&at_once)))?;
        }
        for (token, event) in tokens.iter_mut().zip(&events) {
            *token = Some(event.data.u64());
        }
        Ok(events.len())
    }

    fn read_subscriber(&mut self) -> Result<()> {
        let Some(subscriber) = &mut self.subscriber else {
            return Ok(());
        };
        let latencies = &mut self.latencies;
        subscriber.read_messages(|payload| {
            if let Some(latencies) = latencies {
                latencies.subscriber.extend(stamp::age(payload));
            }
        })
    }

    fn read_socket(&mut self, index: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        // The socket of an event may have been reset meanwhile.
        while let Some(Some(conn)) = self.conns.get_mut(index) {
            conn.send_request();
            match conn.stream.read(&mut scratch) {
                Ok(0) => self.lose(index),
                Ok(read) => {
                    self.take(index, &scratch[..read]);
                    if read < scratch.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lose(index),
            }
        }
        self.scratch = scratch;
    }

    fn lose(&mut self, index: usize) {
        let Some(conn) = self.conns.get_mut(index).and_then(Option::take) else {
            return;
        };
        if conn.opening.is_some() {
            self.openings.under_way -= 1;
            self.openings.refused += 1;
        } else if conn.goodbye != Goodbye::Seen {
            self.tallies[conn.side as usize].closed += 1;
        }
    }

    /// Takes bytes of the answer to the upgrade; returns those behind its head.
    fn take_head(&mut self, index: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let conn = self.conns.get_mut(index)?.as_mut()?;
        let head = &mut conn.opening.as_mut()?.head;
        head.extend(bytes);
        let end = head.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let behind = head.split_off(end);
        if head.starts_with(b"HTTP/1.1 101") {
            conn.opening = None;
            self.openings.under_way -= 1;
            self.openings.opened += 1;
            return Some(behind);
        }
        let refusal = [&head[..], &behind].concat();
        let told = String::from_utf8_lossy(&refusal).into_owned();
        self.openings.first_refusal.get_or_insert(told);
        self.lose(index);
        None
    }

    fn take(&mut self, index: usize, bytes: &[u8]) {
        let opening = |conn: &Conn| conn.opening.is_some();
        match self.conns.get(index) {
            Some(Some(conn)) if opening(conn) => {
                if let Some(behind) = self.take_head(index, bytes) {
                    self.take_frames(index, &behind);
                }
            }
            _ => self.take_frames(index, bytes),
        }
    }

    fn take_frames(&mut self, index: usize, bytes: &[u8]) {
        let Some(Some(conn)) = self.conns.get_mut(index) else {
            return;
        };
        let tally = &mut self.tallies[conn.side as usize];
        let latencies = &mut self.latencies;
        let goodbyes = &mut self.goodbyes;
        let Conn {
            stream,
            side,
            parser,
            goodbye,
            frames,
            ..
        } = conn;
        parser.feed(bytes, |opcode, tail, length| match opcode {
            Opcode::Data => {
                tally.frames += 1;
                *frames += 1;
                tally.last_len = length;
                if let Some(latencies) = latencies
                    && *side != Side::Apart
                {
                    latencies.arrived(tail);
                }
            }
            Opcode::Ping => {
                // A pong that is lost makes the gateway close the socket, and the run fails.
                stream.write_all(&crate::frames::masked_pong(tail)).ok();
            }
            Opcode::Close => match crate::frames::close_code(tail) {
                Some(code) if *goodbye == Goodbye::Wanted(code) => {
                    goodbyes.push((index, stamp::now()));
                    *goodbye = Goodbye::Seen;
                    stream.write_all(&crate::frames::masked_close(code)).ok();
                }
                _ => {
                    tally
                        .first_close
                        .get_or_insert_with(|| crate::frames::describe_close(tail));
                }
            },
            Opcode::Other => {}
        });
    }
}

/// Closes without leaving TIME_WAIT behind.
fn reset(conn: Conn) {
    socket2::SockRef::from(&conn.stream)
        .set_linger(Some(Duration::ZERO))
        .ok();
}

fn retried<T>(result: rustix::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
