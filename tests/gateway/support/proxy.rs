//! A TCP proxy between two ends, for a network that fails: it cuts, resets, clogs, delays and splits, and never reorders.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// The most that one read takes.
const CHUNK: usize = 16 * 1024;
/// With [`Line::Split`]: the bytes of a read that are written one by one, and the most in each write of the rest.
const SINGLE: usize = 200;
const FEW: usize = 97;
/// Reads that may wait for their delay.
const UNDER_WAY: usize = 256;

/// The proxy's treatment of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// They pass.
    Open,
    /// Connections end, new ones end at once.
    Cut,
    /// As `Cut`, with an RST in place of a FIN.
    Reset,
    /// Connections stay and are taken, but nothing passes.
    Clogged,
    /// What clients send passes, and no answer does.
    Unanswered,
    /// Each read is passed on after this time; what follows it may be under way meanwhile.
    Slow(Duration),
    /// The first writes of each read have one byte each, the later ones few.
    Split,
}

impl Line {
    fn ends(self) -> bool {
        matches!(self, Self::Cut | Self::Reset)
    }
}

/// Listens on loopback and passes on to one server.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The treatment of bytes, also for a task that changes it.
    pub(crate) line: Arc<watch::Sender<Line>>,
    target: Arc<watch::Sender<String>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of `target`, `host:port`.
    pub(crate) async fn to(target: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a loopback port");
        let address = listener.local_addr().expect("bound");
        let line = Arc::new(watch::Sender::new(Line::Open));
        let target = Arc::new(watch::Sender::new(target.to_owned()));
        let (lines, targets) = (Arc::clone(&line), target.subscribe());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, targets.clone(), lines.subscribe()));
            }
        });
        Self {
            address,
            line,
            target,
            task,
        }
    }

    /// `host:port` of the proxy.
    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Sets what happens from now on.
    pub(crate) fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Leads new connections to another server, as a name does that moved; those that are open stay.
    pub(crate) fn lead_to(&self, target: &str) {
        self.target.send_replace(target.to_owned());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.line.send_replace(Line::Cut);
    }
}

/// The direction of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

/// Waits until bytes may pass; fails when the proxy is gone.
async fn unclogged(line: &mut watch::Receiver<Line>, way: Way) -> io::Result<()> {
    let passes = |now: &Line| match now {
        Line::Clogged => false,
        Line::Unanswered => way == Way::ToServer,
        _ => true,
    };
    let open = line.wait_for(passes).await;
    open.map(drop)
        .map_err(|_| io::ErrorKind::NotConnected.into())
}

async fn pass(
    mut client: TcpStream,
    target: watch::Receiver<String>,
    mut line: watch::Receiver<Line>,
) {
    if unclogged(&mut line, Way::ToServer).await.is_err() || line.borrow().ends() {
        reset_if(&line, &client);
        return;
    }
    let target = target.borrow().clone();
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    // A failure here only costs speed.
    drop(client.set_nodelay(true));
    drop(server.set_nodelay(true));
    let mut ended = line.clone();
    {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::try_join!(
                pump(from_client, to_server, Way::ToServer, line.clone()),
                pump(from_server, to_client, Way::ToClient, line.clone())
            )
        };
        tokio::select! {
            _ = both => {}
            _ = ended.wait_for(|now| now.ends()) => {}
        }
    }
    reset_if(&line, &client);
    reset_if(&line, &server);
}

fn reset_if(line: &watch::Receiver<Line>, stream: &TcpStream) {
    if *line.borrow() == Line::Reset {
        drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
    }
}

/// Carries one direction to its end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    line: watch::Receiver<Line>,
) -> io::Result<()> {
    let (queue, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let mut reading = line.clone();
    let read = async move {
        loop {
            unclogged(&mut reading, way).await?;
            let mut chunk = vec![0; CHUNK];
            let length = from.read(&mut chunk).await?;
            chunk.truncate(length);
            let delay = match *reading.borrow() {
                Line::Slow(delay) => delay,
                _ => Duration::ZERO,
            };
            let sent = queue.send((Instant::now() + delay, chunk)).await;
            if length == 0 || sent.is_err() {
                return io::Result::Ok(());
            }
        }
    };
    let mut writing = line;
    let write = async move {
        while let Some((due, chunk)) = waiting.recv().await {
            sleep_until(due).await;
            unclogged(&mut writing, way).await?;
            let split = match *writing.borrow() {
                Line::Split => SINGLE.min(chunk.len()),
                _ => 0,
            };
            let (single, rest) = chunk.split_at(split);
            let few = if split > 0 { FEW } else { CHUNK };
            for piece in single.chunks(1).chain(rest.chunks(few)) {
                to.write_all(piece).await?;
            }
            if chunk.is_empty() {
                break;
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}
