//! The load: clients, publishers, connects and revocations of both tenants, and the log that they all write.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::checker::{End, Micros, Revocation, Seen, Sent, Session};
use crate::support::database::{ALICE, BOB};
use crate::support::http::{Response, try_request};
use crate::support::socket::{Dial, Socket};
use crate::support::{Tenant, token, unique};

/// The index of the tenant that the fault concerns, and of the other.
pub(crate) const HURT: usize = 0;
pub(crate) const CALM: usize = 1;

/// The longest wait for the answer to a connect or a call; it is longer than every bound of the gateway.
const ANSWER: Duration = Duration::from_secs(12);
/// The wait of a client before it connects again.
const AGAIN: Duration = Duration::from_millis(150);
/// The time between two revocations of a tenant.
const REVOKE: Duration = Duration::from_millis(400);
/// The time between two connects of a tenant.
const CONNECT: Duration = Duration::from_millis(200);

/// The size of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Clients of each tenant that stay.
    pub(crate) clients: usize,
    /// Clients of each tenant that are revoked one after the other.
    pub(crate) victims: usize,
    /// Groups of each tenant.
    pub(crate) groups: usize,
    /// The time between two events of a group.
    pub(crate) pace: Duration,
    /// The time before the fault.
    pub(crate) calm: Duration,
    /// True for the long form of the faults.
    pub(crate) long: bool,
}

impl Size {
    /// For `tests/run`.
    pub(crate) const SHORT: Self = Self {
        clients: 20,
        victims: 10,
        groups: 4,
        pace: Duration::from_millis(40),
        calm: Duration::from_millis(1_500),
        long: false,
    };
    /// 500 clients that stay. In the time before the fault 2,000 events of each tenant arrive at 11 sockets each, so that twenty
    /// events are beyond a p99. Victims last longer than most faults.
    pub(crate) const LONG: Self = Self {
        clients: 250,
        victims: 60,
        groups: 25,
        pace: Duration::from_millis(100),
        calm: Duration::from_secs(8),
        long: true,
    };
}

/// One attempt to open a socket beside the clients.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    pub(crate) tenant: usize,
    pub(crate) began: Micros,
    pub(crate) ended: Micros,
    /// 101, the status of the refusal, or 0 for none.
    pub(crate) status: u16,
    /// True if the token had been revoked before.
    pub(crate) revoked: bool,
}

/// The addresses that a fault may change.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// Of the API of each replica.
    pub(crate) api: Vec<SocketAddr>,
    /// The URL of the Redis that publishers of each tenant use.
    pub(crate) redis: [String; 2],
}

/// The log of a run.
#[derive(Default)]
pub(crate) struct Log {
    /// The ids of tokens whose revocation was asked for. A call without a good answer may have revoked, too: the denylist may have
    /// it, and the next look at the open sockets ends them.
    pub(crate) asked: Mutex<BTreeSet<String>>,
    /// By group; those of `hurt` come first.
    pub(crate) sent: Vec<Mutex<Vec<Sent>>>,
    pub(crate) sessions: Mutex<Vec<Arc<Mutex<Session>>>>,
    pub(crate) connects: Mutex<Vec<Connect>>,
    pub(crate) revocations: Mutex<Vec<Revocation>>,
}

/// The phases that tasks follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    Running,
    /// No new events, connects and revocations.
    Ebbing,
    /// The end: sockets stay as they are.
    Over,
}

/// All that the tasks of the load share.
pub(crate) struct Field {
    pub(crate) began: Instant,
    pub(crate) tenants: [Tenant; 2],
    /// The addresses for sockets, by tenant and replica.
    pub(crate) fronts: [[SocketAddr; 2]; 2],
    pub(crate) addresses: Mutex<Addresses>,
    pub(crate) api_key: String,
    pub(crate) size: Size,
    pub(crate) by_api: bool,
    pub(crate) log: Log,
    pub(crate) phase: watch::Sender<Phase>,
    /// Tasks that publish and revoke: an event or a revocation whose answer is still to come may be due.
    pub(crate) at_work: AtomicUsize,
    /// A rise makes every client connect again.
    pub(crate) storms: watch::Sender<u32>,
    /// The groups of `hurt` that the fault concerns; all of them until a fault says less.
    pub(crate) concerned: Mutex<Option<BTreeSet<usize>>>,
    victims: Mutex<[VecDeque<Victim>; 2]>,
    /// Tokens that were revoked.
    dead: Mutex<[VecDeque<String>; 2]>,
}

impl Field {
    pub(crate) fn new(
        tenants: [Tenant; 2],
        fronts: [[SocketAddr; 2]; 2],
        addresses: Addresses,
        api_key: String,
        (size, by_api): (Size, bool),
    ) -> Arc<Self> {
        let groups = (0..2 * size.groups).map(|_| Mutex::default());
        Arc::new(Self {
            began: Instant::now(),
            tenants,
            fronts,
            addresses: Mutex::new(addresses),
            api_key,
            size,
            by_api,
            log: Log {
                sent: groups.collect(),
                ..Log::default()
            },
            phase: watch::Sender::new(Phase::Running),
            at_work: AtomicUsize::new(0),
            storms: watch::Sender::new(0),
            concerned: Mutex::default(),
            victims: Mutex::default(),
            dead: Mutex::default(),
        })
    }

    /// The time since the beginning.
    pub(crate) fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).expect("a run is short")
    }

    /// The name of a group in its layer.
    pub(crate) fn group_name(group: usize) -> String {
        format!("g_{group}")
    }

    /// The tenant of a group.
    pub(crate) fn tenant_of(&self, group: usize) -> usize {
        group / self.size.groups
    }

    /// Starts the clients of both tenants, spread over replicas and groups.
    pub(crate) fn populate(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let each = self.size.clients + self.size.victims;
        for client in 0..2 * each {
            let (tenant, place) = (client / each, client % each);
            let seat = Seat {
                client,
                tenant,
                replica: place % 2,
                group: tenant * self.size.groups + place / 2 % self.size.groups,
                stays: place < self.size.clients,
            };
            tasks.spawn(Arc::clone(self).occupy(seat));
        }
    }

    /// Starts publishers, connects and revocations.
    pub(crate) fn load(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        for group in 0..self.log.sent.len() {
            let publish = crate::publish::publish(Arc::clone(self), group);
            tasks.spawn(Arc::clone(self).work(publish));
        }
        for tenant in [HURT, CALM] {
            tasks.spawn(Arc::clone(self).connect(tenant));
            let revoke = Arc::clone(self).revoke(tenant);
            tasks.spawn(Arc::clone(self).work(revoke));
        }
    }

    /// Counts the task as [`Field::at_work`] from now to its end.
    fn work(self: Arc<Self>, task: impl Future<Output = ()>) -> impl Future<Output = ()> {
        self.at_work.fetch_add(1, Ordering::AcqRel);
        async move {
            task.await;
            self.at_work.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// One dial; `None` without an answer.
    async fn dial(
        &self,
        tenant: usize,
        replica: usize,
        group: usize,
        token: &str,
    ) -> Option<Result<Socket, Response>> {
        let front = self.fronts[tenant][replica];
        let path = format!("/ws/{group}/");
        let dial = Dial::new(front, &self.tenants[tenant].host, &path).token(token);
        let answer = tokio::time::timeout(ANSWER, dial.attempt_or_cut()).await;
        answer.ok().flatten()
    }

    /// A client: it opens a socket, reads, and opens another one when that ends.
    async fn occupy(self: Arc<Self>, seat: Seat) {
        let mut replica = seat.replica;
        loop {
            if *self.phase.borrow() != Phase::Running {
                return;
            }
            let mut claims = token::access(ALICE);
            let jti = unique();
            claims["jti"] = jti.as_str().into();
            claims["exp"] = (token::now() + 86_400).into();
            let text = self.tenants[seat.tenant].sign(&claims);
            let attempt = self.dial(seat.tenant, replica, seat.group, &text).await;
            if let Some(Ok(socket)) = attempt {
                let session = Arc::new(Mutex::new(Session {
                    client: seat.client,
                    tenant: seat.tenant,
                    replica,
                    group: seat.group,
                    jti: jti.clone(),
                    opened: self.now(),
                    seen: Vec::new(),
                    ended: None,
                }));
                self.log.sessions.lock().push(Arc::clone(&session));
                if !seat.stays {
                    let exp = claims["exp"].clone();
                    let victim = Victim {
                        jti,
                        exp,
                        token: text,
                    };
                    self.victims.lock()[seat.tenant].push_back(victim);
                }
                if !self.read(socket, &session).await || !seat.stays {
                    return;
                }
            }
            replica = 1 - replica;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Reads to the end of the socket; false if the run is over before.
    async fn read(&self, mut socket: Socket, session: &Mutex<Session>) -> bool {
        let mut phase = self.phase.subscribe();
        let mut storms = self.storms.subscribe();
        storms.mark_unchanged();
        loop {
            let message = tokio::select! {
                message = socket.read() => message,
                _ = phase.wait_for(|phase| *phase == Phase::Over) => return false,
                _ = storms.changed() => {
                    session.lock().ended = Some((self.now(), End::Closed(1000)));
                    return true;
                }
            };
            let now = self.now();
            let end = match message {
                Some(Ok(Message::Text(text))) => {
                    session.lock().seen.push((now, read_event(&text)));
                    continue;
                }
                Some(Ok(Message::Close(Some(frame)))) => End::Closed(frame.code.into()),
                Some(Ok(Message::Close(None))) => End::Closed(1005),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => End::Cut,
            };
            session.lock().ended = Some((now, end));
            return true;
        }
    }

    /// Opens and closes sockets, some with tokens that were revoked.
    async fn connect(self: Arc<Self>, tenant: usize) {
        let mut attempts = JoinSet::new();
        let mut tick = tokio::time::interval(CONNECT);
        for count in 0_usize.. {
            tick.tick().await;
            if *self.phase.borrow() != Phase::Running {
                break;
            }
            let dead = (count % 5 == 4).then(|| self.dead.lock()[tenant].pop_front());
            let field = Arc::clone(&self);
            attempts.spawn(async move { field.connect_once(tenant, count, dead.flatten()).await });
        }
        attempts.join_all().await;
    }

    async fn connect_once(&self, tenant: usize, count: usize, dead: Option<String>) {
        let began = self.now();
        let user = if count.is_multiple_of(2) { BOB } else { ALICE };
        let token = dead
            .clone()
            .unwrap_or_else(|| self.tenants[tenant].token(user));
        let group = tenant * self.size.groups;
        let answer = self.dial(tenant, count % 2, group, &token).await;
        let status = match &answer {
            Some(Ok(_)) => 101,
            Some(Err(refusal)) => refusal.status,
            None => 0,
        };
        self.log.connects.lock().push(Connect {
            tenant,
            began,
            ended: self.now(),
            status,
            revoked: dead.is_some(),
        });
        if let Some(Ok(mut socket)) = answer {
            let close = socket.try_send(Message::Close(None));
            drop(tokio::time::timeout(Duration::from_secs(1), close).await);
        }
    }

    /// Revokes the victims one after the other; each call is repeated until it is confirmed, as the API asks of its callers.
    async fn revoke(self: Arc<Self>, tenant: usize) {
        let mut tick = tokio::time::interval(REVOKE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let path = format!("/v1/tenants/{}/revocations", self.tenants[tenant].name);
        for count in 0_usize.. {
            tick.tick().await;
            if *self.phase.borrow() != Phase::Running {
                return;
            }
            let Some(victim) = self.victims.lock()[tenant].pop_front() else {
                continue;
            };
            let body = json!({"jti": victim.jti, "exp": victim.exp}).to_string();
            self.log.asked.lock().insert(victim.jti.clone());
            match self.call(count % 2, "POST", &path, &body).await {
                Some(answer) if answer.status == 200 => {
                    self.dead.lock()[tenant].push_back(victim.token);
                    self.log.revocations.lock().push(Revocation {
                        jti: victim.jti,
                        confirmed: self.now(),
                    });
                }
                _ => self.victims.lock()[tenant].push_front(victim),
            }
        }
    }

    /// A call of the API of a replica; `None` without an answer.
    pub(crate) async fn call(
        &self,
        replica: usize,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<Response> {
        let address = self.addresses.lock().api[replica];
        let bearer = format!("Bearer {}", self.api_key);
        let headers = [("Authorization", bearer.as_str())];
        let answer = try_request(address, method, path, &headers, body);
        tokio::time::timeout(ANSWER, answer).await.ok().flatten()
    }
}

/// A client that waits for its revocation.
struct Victim {
    jti: String,
    exp: Value,
    token: String,
}

/// The place of a client.
struct Seat {
    client: usize,
    tenant: usize,
    replica: usize,
    group: usize,
    /// True if it comes back after an end; else it is there to be revoked.
    stays: bool,
}

/// What is not one of our events is of a group that does not exist.
fn read_event(text: &str) -> Seen {
    let event: Value = serde_json::from_str(text).unwrap_or_default();
    if event["type"] == "lockgate.gap" {
        return Seen::Gap;
    }
    let number = |key: &str| {
        let number = event[key].as_u64();
        number.and_then(|number| usize::try_from(number).ok())
    };
    Seen::Event {
        group: number("group").unwrap_or(usize::MAX),
        number: number("number").unwrap_or(usize::MAX),
    }
}
