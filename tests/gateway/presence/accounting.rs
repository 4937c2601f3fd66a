//! Random joins, leaves and kills of replicas with many sockets in many rooms: after each quiet moment the API says the truth,
//! and joins and leaves pair up for every socket that was told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use super::{HEALED, LAYERS, USERS, enter, found, house, many_users};
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually};

const ROOMS: usize = 50;
/// Opens and closes between two looks.
const STEPS: usize = 150;

/// The number of sockets that `tests/run presence` asks for in this variable.
const ASKED: &str = "LOCKGATE_PRESENCE_SOCKETS";
/// The number without it.
const FEW: usize = 300;
/// The time within which the long form wants the truth of all rooms on both replicas, after joins and leaves. Presence is true
/// within a second; the rest is for the hundred calls that look.
const BOUND: Duration = Duration::from_secs(3);

fn sockets() -> usize {
    let asked = std::env::var(ASKED).ok();
    asked.map_or(FEW, |asked| asked.parse().expect("a number of sockets"))
}

/// What one socket was told of each user last: true is a join.
type Told = Arc<Mutex<BTreeMap<String, bool>>>;

/// One open socket, which notes what it is told.
struct Client {
    user: String,
    room: usize,
    replica: usize,
    /// The users who were there when it opened.
    met: BTreeSet<String>,
    /// Those who had closed a socket not long before: they may have been there still, as ones who linger.
    unsure: BTreeSet<String>,
    told: Told,
    reader: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        // The socket goes with its task.
        self.reader.abort();
    }
}

async fn read(mut socket: Socket, told: Told, wrong: Arc<Mutex<Vec<String>>>, of: String) {
    while let Some(Ok(message)) = socket.read().await {
        let Ok(text) = message.to_text() else {
            continue;
        };
        let Ok(frame) = serde_json::from_str::<serde_json::Value>(text) else {
            continue;
        };
        let joins = match frame["type"].as_str() {
            Some("lockgate.join") => true,
            Some("lockgate.leave") => false,
            _ => continue,
        };
        let user = frame["user"]["id"].as_str().expect("an id").to_owned();
        let before = told.lock().expect("never poisoned").insert(user, joins);
        if before == Some(joins) {
            wrong
                .lock()
                .expect("never poisoned")
                .push(format!("{of}: {frame} again"));
        }
    }
}

impl Client {
    /// Returns what is wrong in what it was told, if these users are there now.
    fn mistake(&self, truth: &BTreeMap<String, u64>) -> Option<String> {
        let told = self.told.lock().expect("never poisoned");
        let mut users = truth.keys().chain(told.keys()).chain(&self.met);
        let wrong = users.find(|user| {
            let is_here = truth.contains_key(*user);
            match told.get(*user) {
                Some(joins) => *joins != is_here,
                None if self.unsure.contains(*user) || **user == self.user => false,
                None => self.met.contains(*user) != is_here,
            }
        })?;
        let (told, met) = (told.get(wrong), self.met.contains(wrong));
        Some(format!(
            "{} of r{}: told {told:?} of {wrong}, who was there at first: {met}",
            self.user, self.room
        ))
    }
}

struct World {
    gateway: Gateway,
    clients: Vec<Client>,
    /// The users who have closed a socket, by room, with the time of the last one.
    closed: BTreeMap<(usize, String), Instant>,
    rng: StdRng,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl World {
    async fn open(&mut self) {
        let replica = self.rng.random_range(0..2);
        let (room, user) = (
            self.rng.random_range(0..ROOMS),
            self.rng.random_range(0..USERS),
        );
        let user = (100 + user).to_string();
        let met = self.truth(room).into_keys().collect();
        let lately = self.closed.iter().filter(|(_, at)| at.elapsed() < HEALED);
        let unsure = lately.filter(|((of, _), _)| *of == room);
        let unsure = unsure.map(|((_, user), _)| user.clone()).collect();
        let socket = enter(&self.gateway, replica, &format!("r{room}"), &user).await;
        let told = Told::default();
        let of = format!("{user} in r{room} on {replica}");
        let reader = tokio::spawn(read(socket, told.clone(), self.wrong.clone(), of));
        self.clients.push(Client {
            user,
            room,
            replica,
            met,
            unsure,
            told,
            reader,
        });
    }

    async fn fill(&mut self) {
        while self.clients.len() < sockets() {
            self.open().await;
        }
    }

    async fn step(&mut self) {
        if self.clients.len() < sockets() && self.rng.random_bool(0.5) {
            self.open().await;
        } else {
            let at = self.rng.random_range(0..self.clients.len());
            let client = self.clients.swap_remove(at);
            self.note_closed(&client);
        }
    }

    fn note_closed(&mut self, client: &Client) {
        let of = (client.room, client.user.clone());
        self.closed.insert(of, Instant::now());
    }

    /// The users of a room, each with the number of sockets.
    fn truth(&self, room: usize) -> BTreeMap<String, u64> {
        let mut truth = BTreeMap::new();
        for client in self.clients.iter().filter(|client| client.room == room) {
            *truth.entry(client.user.clone()).or_default() += 1;
        }
        truth
    }

    /// Waits until both replicas say the truth of every room. Returns the time that it took.
    async fn check(&mut self, deadline: Duration) -> Duration {
        let began = Instant::now();
        for room in 0..ROOMS {
            let truth = self.truth(room);
            let truth = (truth.clone(), truth.values().sum::<u64>());
            for replica in 0..2 {
                eventually(deadline, &format!("the truth of r{room}"), async || {
                    let found = found(&self.gateway, replica, &format!("r{room}")).await;
                    let found = found.expect("Redis answers");
                    if found == truth {
                        Ok(())
                    } else {
                        Err((found, truth.clone()))
                    }
                })
                .await;
            }
        }
        let took = began.elapsed();
        let wrong = self.wrong.lock().expect("never poisoned");
        assert!(wrong.is_empty(), "{wrong:?}");
        took
    }

    /// Waits until what every socket has met and was told since is the truth: users who linger have left.
    async fn check_observers(&self) {
        eventually(HEALED, "what sockets were told", async || {
            let mut clients = self.clients.iter();
            let wrong = clients.find_map(|client| client.mistake(&self.truth(client.room)));
            wrong.map_or(Ok(()), Err)
        })
        .await;
        let wrong = self.wrong.lock().expect("never poisoned");
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Kills a replica with all its sockets, and starts another in its place.
    async fn kill(&mut self, replica: usize) {
        self.gateway.replicas[replica].process.kill();
        let of_it = |client: &mut Client| client.replica == replica;
        let gone: Vec<Client> = self.clients.extract_if(.., of_it).collect();
        gone.iter().for_each(|client| self.note_closed(client));
        self.gateway.add_replica().await;
        let new = self.gateway.replicas.pop().expect("added just now");
        new.ready().await;
        self.gateway.replicas[replica] = new;
    }
}

async fn account(layer: &str) {
    let redis = RedisServer::start().await;
    let rule = "fields = ['username'], notify = true, linger = '1s'";
    let users = many_users().await;
    let gateway = house(2, layer, rule)
        .redis(&redis.url())
        .users(&users)
        .start()
        .await;
    let mut world = World {
        gateway,
        clients: Vec::new(),
        closed: BTreeMap::new(),
        rng: StdRng::seed_from_u64(7),
        wrong: Arc::default(),
    };
    let (mut slowest, mut healed) = (Duration::ZERO, Duration::ZERO);
    world.fill().await;
    for round in 0..6 {
        for _ in 0..STEPS {
            world.step().await;
        }
        slowest = slowest.max(world.check(PATIENCE).await);
        if round % 3 == 2 {
            world.kill(round / 3).await;
            healed = healed.max(world.check(HEALED).await);
            world.fill().await;
        }
    }
    world.check_observers().await;
    println!(
        "{layer}: {} sockets, the truth within {slowest:?}, after a kill within {healed:?}",
        world.clients.len(),
    );
    assert!(sockets() <= FEW || slowest < BOUND, "{slowest:?}");
}

#[tokio::test]
async fn random_joins_leaves_and_kills_end_in_the_truth() {
    for layer in LAYERS {
        account(layer).await;
    }
}
