//! The clients of the account, and what each of them got.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

use super::ground::{Ground, MORE_LETTERS};
use crate::support::socket::{Dial, Socket};

/// The longest wait for the answer to a connect.
const ANSWER: Duration = Duration::from_secs(12);
/// The wait before a client comes back.
const AGAIN: Duration = Duration::from_millis(100);
/// A client that is to stand still does so at an event of this length or more.
const LARGE: usize = 10_000;
/// The bytes that the system keeps for such a client.
const LITTLE: usize = 32 * 1024;

/// The life of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    Running,
    /// No new events; all are delivered.
    Over,
}

/// The log of one client.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) group: usize,
    pub(crate) resumes: bool,
    pub(crate) sockets: usize,
    /// What told it of each gap.
    pub(crate) gaps: Vec<String>,
    /// The numbers of its events, in the order in which they came; `None` for what is no event of its group.
    pub(crate) seen: Vec<Option<u64>>,
    /// The offset of its first position.
    pub(crate) first: Option<u64>,
    position: Option<String>,
    /// The length of the event at which it stood still last.
    stood_at: usize,
    /// The offset of its last position, for others to see.
    reached: Arc<AtomicU64>,
}

impl Log {
    pub(crate) fn new(group: usize, resumes: bool) -> Self {
        Self {
            group,
            resumes,
            ..Self::default()
        }
    }

    /// The offset of the last position that it has at any time.
    pub(crate) fn reached(&self) -> Arc<AtomicU64> {
        self.reached.clone()
    }

    fn take(&mut self, text: &str, tenant: &str) {
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let position = frame.get("lockgate.position").or(frame.get("position"));
        if let Some(position) = position.and_then(Value::as_str) {
            let offset = position.rsplit_once('~').and_then(|(_, n)| n.parse().ok());
            self.first = self.first.or(offset);
            self.reached
                .store(offset.unwrap_or_default(), Ordering::Relaxed);
            self.position = Some(position.to_owned());
        }
        match frame["type"].as_str() {
            Some("lockgate.position") => {}
            Some("lockgate.gap") => self.gaps.push(text.to_owned()),
            _ => {
                let ours = frame["group"] == self.group && frame["tenant"] == tenant;
                let number = frame["number"].as_u64();
                self.seen.push(number.filter(|_| ours));
            }
        }
    }

    /// Opens one socket after another until the end. With a pause it stands still for so long, once in a burst.
    pub(crate) async fn live(
        mut self,
        ground: Arc<Ground>,
        place: usize,
        pause: Option<Duration>,
        mut phase: watch::Receiver<Phase>,
    ) -> Self {
        let mut replica = place;
        loop {
            // Our doors keep megabytes for a client that takes nothing.
            let doors = match pause {
                None => ground.fronts.clone(),
                Some(_) => ground.addresses.lock().sockets.clone(),
            };
            let door = doors[replica % doors.len()];
            if let Some(socket) = self.dial(&ground, door).await {
                self.sockets += 1;
                if pause.is_some() {
                    socket.keep_little(LITTLE);
                }
                let tenant = &ground.tenant.name;
                if self.read(socket, tenant, pause, &mut phase).await {
                    return self;
                }
            }
            if *phase.borrow() == Phase::Over {
                return self;
            }
            replica += 1;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn dial(&self, ground: &Ground, door: SocketAddr) -> Option<Socket> {
        let kind = if self.resumes { "back" } else { "plain" };
        let path = format!("/{kind}/{}/", self.group);
        let mut query = format!("token={}", ground.token());
        if let Some(position) = &self.position {
            query.push_str(&format!("&since={position}"));
        }
        let dial = Dial::new(door, &ground.tenant.host, &path).query(&query);
        let answer = tokio::time::timeout(ANSWER, dial.attempt_or_cut()).await;
        answer.ok()??.ok()
    }

    /// Reads to the end of the socket; true if the run is over.
    async fn read(
        &mut self,
        mut socket: Socket,
        tenant: &str,
        pause: Option<Duration>,
        phase: &mut watch::Receiver<Phase>,
    ) -> bool {
        loop {
            let message = tokio::select! {
                message = socket.read() => message,
                _ = phase.wait_for(|phase| *phase == Phase::Over) => return true,
            };
            match message {
                Some(Ok(Message::Text(text))) => {
                    self.take(&text, tenant);
                    // The lengths within a burst differ by some digits alone.
                    if let Some(pause) = pause
                        && text.len() >= LARGE.max(self.stood_at + MORE_LETTERS / 2)
                    {
                        self.stood_at = text.len();
                        tokio::time::sleep(pause).await;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(_) | Err(_)) | None => return false,
            }
        }
    }
}
