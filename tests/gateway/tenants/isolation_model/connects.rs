//! Steps in which a client connects: at its own tenant's host, at another's, at an unknown one.

use std::collections::BTreeSet;

use super::party::{KINDS, NOBODYS, Source, Token};
use super::random::Random;
use super::world::{Open, World};
use crate::support::database::{ALICE, BOB};
use crate::support::http::Response;
use crate::support::socket::{Dial, Socket};

/// Places from which a tenant's name must not be taken.
const LYING_HEADERS: [&str; 5] = [
    "X-Forwarded-Host",
    "X-Original-Host",
    "X-Host",
    "X-Tenant",
    "Forwarded",
];

/// The refusal of an upgrade, and the limit that it counts for.
struct Refused {
    status: u16,
    code: &'static str,
    limit: Option<&'static str>,
}

fn refused(status: u16, code: &'static str) -> Option<Refused> {
    let limit = None;
    Some(Refused {
        status,
        code,
        limit,
    })
}

impl World {
    /// A client of a tenant connects with a token of its own: a new one, that of an open socket, or an old one.
    pub(super) async fn connect(&mut self, random: &mut Random, old: bool) -> bool {
        let party = random.below(self.parties.len());
        let replica = random.below(2);
        let known = &self.parties[party].tokens;
        let token = if known.is_empty() || !(old || random.chance(30)) {
            let user = *random.pick(&[ALICE, BOB]);
            self.clock += 1;
            self.parties[party].mint(user, self.clock)
        } else {
            random.pick(known).clone()
        };
        let (path, groups) = match random.chance(50) {
            true => ("/ws/chat/a/".to_owned(), vec!["chat_a".to_owned()]),
            false => {
                let room = random.pick(&self.rooms[party]).clone();
                (
                    format!("/ws/any/{}/", encoded(&room)),
                    vec![room, "chat_a".to_owned()],
                )
            }
        };
        let host = *random.pick(KINDS[party].spellings);
        let target = match random.chance(20) {
            true => format!("http://{host}{path}"),
            false => path.clone(),
        };
        let mut dial = Dial::new(self.gateway.replicas[replica].server, host, &target);
        if random.chance(50) {
            let other = random.pick(KINDS[(party + 1) % KINDS.len()].spellings);
            let header = LYING_HEADERS[random.below(LYING_HEADERS.len())];
            dial = dial.header(header, other);
        }
        let words = format!(
            "{} {} connects to {target} at replica {replica} as {host}",
            KINDS[party].word, token.jti
        );
        self.knock(party, replica, token, (path, groups), dial, words)
            .await
    }

    /// One attempt with a token that is good at its tenant; answers whether a socket closed.
    pub(super) async fn knock(
        &mut self,
        party: usize,
        replica: usize,
        token: Token,
        (path, groups): (String, Vec<String>),
        dial: Dial,
        words: String,
    ) -> bool {
        let refusal = self.refusal(party, replica, &token);
        let outcome = dial.token(&token.text).attempt().await;
        if refusal.as_ref().is_none_or(|refused| refused.status != 403) {
            self.looks_up.insert(party);
        }
        self.parties[party].looked_up.insert(token.user.clone());
        let socket = match (refusal, outcome) {
            (None, Ok(socket)) => socket,
            (Some(refused), Err(answer)) => {
                self.log
                    .say(format!("{words}: refused with {}", refused.code));
                self.is_refused(party, &answer, refused.status, refused.code);
                if let Some(limit) = refused.limit {
                    let label = format!("limit={limit}");
                    self.count(party, "lockgate_rate_limited_total", &label, 1.0);
                }
                return false;
            }
            (refusal, outcome) => {
                let wanted = refusal.map(|refused| refused.code);
                panic!(
                    "{words}: must be {wanted:?}, is {:?}",
                    outcome.map(|_| "open")
                );
            }
        };
        self.log.say(format!("{words}: open"));
        self.enters(party, replica, token, (path, groups), socket)
            .await
    }

    /// A socket has opened; answers whether it took another's place.
    async fn enters(
        &mut self,
        party: usize,
        replica: usize,
        token: Token,
        (path, groups): (String, Vec<String>),
        socket: Socket,
    ) -> bool {
        self.count(party, "lockgate_handshakes_total", "result=accepted", 1.0);
        self.count(party, "lockgate_connections", "", 1.0);
        let groups: BTreeSet<String> = groups.into_iter().collect();
        self.count(party, "lockgate_subscriptions", "", groups.len() as f64);
        self.parties[party].groups.extend(groups.iter().cloned());
        let oldest = self.one_too_many(party, replica, &token.user);
        self.open.push(Open {
            since: self.barriers,
            party,
            replica,
            token,
            path,
            groups,
            socket,
            due: Vec::new(),
        });
        let Some(oldest) = oldest else {
            return false;
        };
        let mut replaced = self.open.remove(oldest);
        let name = replaced.name(&self.parties);
        let (code, reason) = replaced.socket.closed().await;
        assert_eq!((code, &*reason), (4506, "replaced"), "{name}");
        let labels = "code=4506 reason=replaced";
        self.left(party, replaced.groups.len(), labels);
        let limit = "limit=connections_per_user";
        self.count(party, "lockgate_rate_limited_total", limit, 1.0);
        true
    }

    /// A client without a token, or with one that nobody signed, on the route that asks for none.
    pub(super) async fn stranger(&mut self, random: &mut Random) {
        let (party, replica) = (random.below(self.parties.len()), random.below(2));
        let host = *random.pick(KINDS[party].spellings);
        let path = "/ws/open/a/";
        let dial = Dial::new(self.gateway.replicas[replica].server, host, path);
        let signed = random.chance(20);
        let words = format!("a stranger at {host}, replica {replica}, with a token: {signed}");
        let dial = match signed {
            true => dial.token("e30.e30.e30"),
            false => dial,
        };
        let none = Token::none();
        let refusal = self.refusal(party, replica, &none);
        let outcome = dial.attempt().await;
        let refusal = match (signed, &outcome) {
            (true, Err(answer)) => Some(self.bad_token(party, answer)),
            (true, Ok(_)) => refused(401, "token_not_valid"),
            (false, _) => refusal,
        };
        match (refusal, outcome) {
            (None, Ok(socket)) => {
                self.log.say(format!("{words}: open"));
                let place = (path.to_owned(), vec!["chat_a".to_owned()]);
                let replaced = self.enters(party, replica, none, place, socket).await;
                assert!(!replaced, "{words}: it took the place of a user");
            }
            (Some(refused), Err(answer)) => {
                self.log
                    .say(format!("{words}: refused with {}", refused.code));
                self.is_refused(party, &answer, refused.status, refused.code);
                if let Some(limit) = refused.limit {
                    let label = format!("limit={limit}");
                    self.count(party, "lockgate_rate_limited_total", &label, 1.0);
                }
            }
            (refusal, outcome) => {
                let wanted = refusal.map(|refused| refused.code);
                panic!(
                    "{words}: must be {wanted:?}, is {:?}",
                    outcome.map(|_| "open")
                );
            }
        }
    }

    /// Why a token that no key of the tenant verifies opens nothing.
    fn bad_token(&self, party: usize, answer: &Response) -> Refused {
        // A tenant that this handshake has made learns of a suspension from Redis, for which only a good token waits.
        let is_known = self.source == Source::File || answer.status == 403;
        let refused = match self.parties[party].suspended && is_known {
            true => refused(403, "tenant_suspended"),
            false => refused(401, "token_not_valid"),
        };
        refused.expect("it is one")
    }

    /// Why a good token, or none where none is asked for, opens nothing just now.
    fn refusal(&self, party: usize, replica: usize, token: &Token) -> Option<Refused> {
        let of = &self.parties[party];
        let here = |open: &&Open| open.party == party && open.replica == replica;
        let open = self.open.iter().filter(here).count();
        let of_user = self.open.iter().filter(here);
        let of_user = of_user.filter(|open| open.token.user == token.user).count();
        let full = |most: usize, count: usize| most != 0 && count >= most;
        if of.suspended {
            return refused(403, "tenant_suspended");
        }
        if of.denies(token) {
            return refused(401, "token_revoked");
        }
        if !token.is_none() && !of.users.contains(&token.user) {
            return refused(401, "user_not_found");
        }
        if of.inactive.contains(&token.user) {
            return refused(401, "user_inactive");
        }
        let limit = if full(of.kind.connections, open) {
            "connections"
        } else if !token.is_none() && !of.kind.replaces && full(of.kind.per_user, of_user) {
            "connections_per_user"
        } else {
            return None;
        };
        Some(Refused {
            status: 429,
            code: "too_many_connections",
            limit: Some(limit),
        })
    }

    /// The socket whose place a new one of its user takes.
    fn one_too_many(&self, party: usize, replica: usize, user: &str) -> Option<usize> {
        let kind = self.parties[party].kind;
        let theirs =
            |open: &Open| open.party == party && open.replica == replica && open.token.user == user;
        let count = self.open.iter().filter(|open| theirs(open)).count();
        let is_user = user != Token::none().user;
        let full = is_user && kind.replaces && count >= kind.per_user;
        full.then(|| self.open.iter().position(theirs)).flatten()
    }

    fn is_refused(&mut self, party: usize, answer: &Response, status: u16, code: &str) {
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (status, Some(code)),
            "{answer:?}"
        );
        let label = format!("result={code}");
        self.count(party, "lockgate_handshakes_total", &label, 1.0);
    }

    /// A token of one tenant at the host of another: told to be no token of it, whatever else the request says.
    pub(super) async fn foreign_token(&mut self, random: &mut Random) {
        let (of, at) = self.two(random);
        let replica = random.below(2);
        self.clock += 1;
        let token = self.parties[of].mint(ALICE, self.clock);
        let host = *random.pick(KINDS[at].spellings);
        let own = *random.pick(KINDS[of].spellings);
        self.log.say(format!(
            "a token of {} at {host} of {}, replica {replica}",
            KINDS[of].word, KINDS[at].word
        ));
        let mut dial = Dial::new(self.gateway.replicas[replica].server, host, "/ws/chat/a/").query(
            &format!("token={}&tenant={}&host={own}", token.text, KINDS[of].word),
        );
        for header in LYING_HEADERS {
            dial = dial.header(header, own);
        }
        let answer = dial.refused().await;
        let refused = self.bad_token(at, &answer);
        self.is_refused(at, &answer, refused.status, refused.code);
    }

    /// Sends a good token to an unknown host, or with a target that contradicts the host.
    pub(super) async fn nobodys_host(&mut self, random: &mut Random) {
        let (of, other) = self.two(random);
        self.clock += 1;
        let token = self.parties[of].mint(BOB, self.clock);
        let own = *random.pick(KINDS[of].spellings);
        let server = self.gateway.replicas[random.below(2)].server;
        let nobody = self.parties.len();
        if random.chance(30) {
            let elsewhere = random.pick(KINDS[other].spellings);
            self.log.say(format!("Host: {own}, target at {elsewhere}"));
            let target = format!("http://{elsewhere}/ws/chat/a/");
            let dial = Dial::new(server, own, &target).token(&token.text);
            self.is_refused(nobody, &dial.refused().await, 400, "request_not_valid");
            return;
        }
        let host = *random.pick(&NOBODYS);
        self.log.say(format!(
            "a token of {} at {host}, which is nobody's",
            KINDS[of].word
        ));
        let dial = Dial::new(server, host, "/ws/chat/a/").token(&token.text);
        let dial = dial.header("X-Forwarded-Host", own);
        self.is_refused(nobody, &dial.refused().await, 404, "tenant_not_found");
    }

    /// Two tenants that are not the same.
    pub(super) fn two(&self, random: &mut Random) -> (usize, usize) {
        let count = self.parties.len();
        let one = random.below(count);
        (one, (one + 1 + random.below(count - 1)) % count)
    }
}

/// A name as a segment of a path.
pub(super) fn encoded(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
