//! Steps that close sockets, of one tenant and of no other: revocations, changed users, suspension, goodbyes.

use serde_json::{Value, json};

use super::party::KINDS;
use super::random::Random;
use super::world::{Open, World};
use crate::support::database::{ALICE, BOB};
use crate::support::{PATIENCE, eventually};

impl World {
    /// Stores and announces as a back end may without the API.
    async fn by_redis(&self, party: usize, key: &str, value: &str, message: &Value) {
        let tenant = &self.parties[party].tenant;
        let key = tenant.redis_key(key);
        let set = [b"SET", key.as_bytes(), value.as_bytes(), b"EX", b"3600"];
        let () = self.command(&set).await;
        let (channel, message) = (tenant.redis_key("control"), message.to_string());
        let publish = [b"PUBLISH", channel.as_bytes(), message.as_bytes()];
        let heard: u64 = self.command(&publish).await;
        assert!(self.hears(party, heard), "{channel}: {heard}");
    }

    pub(super) async fn revoke_token(&mut self, random: &mut Random) -> bool {
        let party = random.below(self.parties.len());
        let of = &self.parties[party];
        let Some(token) = (!of.tokens.is_empty()).then(|| random.pick(&of.tokens).clone()) else {
            return false;
        };
        let jti = token.jti.clone();
        self.log
            .say(format!("revoke {jti} of {}", KINDS[party].word));
        let body = match random.below(3) {
            0 => Some(json!({"jti": jti, "exp": token.expires_at})),
            1 => Some(json!({"token": token.text})),
            _ => None,
        };
        let closed = match body {
            Some(body) => Some(self.revoke(party, random, &body).await),
            None => {
                let message = json!({"v": 1, "op": "revoke", "jti": jti});
                let key = format!("deny:jti:{jti}");
                self.by_redis(party, &key, "1", &message).await;
                None
            }
        };
        self.count(party, "lockgate_revocations_total", "kind=jti", 2.0);
        self.parties[party].denied.insert(jti.clone());
        let revoked = (4501, "token_revoked");
        let theirs = |open: &Open| open.party == party && open.token.jti == jti;
        let count = self.closes(revoked, theirs).await;
        assert!(closed.is_none_or(|closed| closed == count), "{closed:?}");
        count > 0
    }

    async fn revoke(&self, party: usize, random: &mut Random, body: &Value) -> u64 {
        let call = ("POST", "revocations", body.to_string());
        let (replica, operator) = (random.below(2), random.chance(50));
        let answer = self
            .call(party, replica, operator, (call.0, call.1, &call.2))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["closed"].as_u64().expect("a number")
    }

    /// A cut-off for a user, or for the whole tenant.
    pub(super) async fn revoke_until(&mut self, random: &mut Random, of_user: bool) -> bool {
        let party = random.below(self.parties.len());
        let of = &self.parties[party];
        let Some(token) = (!of.tokens.is_empty()).then(|| random.pick(&of.tokens).clone()) else {
            return false;
        };
        let (user, until) = (token.user, token.issued_at);
        let before = match of_user {
            true => of.user_cut_offs.get(&user).copied(),
            false => of.cut_off,
        };
        self.log.say(format!(
            "revoke of {} until {until}, user: {of_user} {user}",
            KINDS[party].word
        ));
        let mut body = json!({"issued_before": until});
        if of_user {
            body["user_id"] = user.as_str().into();
        }
        // A writer of the key itself must not lower it.
        let closed = match random.chance(50) || before.is_some_and(|before| before > until) {
            true => Some(self.revoke(party, random, &body).await),
            false => {
                body["v"] = 1.into();
                body["op"] = "revoke".into();
                let key = match of_user {
                    true => format!("deny:user:{user}"),
                    false => "deny:all".to_owned(),
                };
                let value = until.to_string();
                self.by_redis(party, &key, &value, &body).await;
                None
            }
        };
        let holds = before.map_or(until, |before| before.max(until));
        let of = &mut self.parties[party];
        let kind = match of_user {
            true => {
                of.user_cut_offs.insert(user.clone(), holds);
                "kind=user"
            }
            false => {
                of.cut_off = Some(holds);
                "kind=tenant"
            }
        };
        self.count(party, "lockgate_revocations_total", kind, 2.0);
        let concerned = |open: &Open| {
            let theirs = open.party == party && (!of_user || open.token.user == user);
            theirs && open.token.issued_at <= until
        };
        let count = self.closes((4501, "token_revoked"), concerned).await;
        assert!(closed.is_none_or(|closed| closed == count), "{closed:?}");
        count > 0
    }

    pub(super) async fn disconnect(&mut self, random: &mut Random) -> bool {
        let party = random.below(self.parties.len());
        let user = *random.pick(&[ALICE, BOB]);
        self.log
            .say(format!("disconnect {user} of {}", KINDS[party].word));
        let path = format!("users/{user}/disconnect");
        let call = ("POST", path.as_str(), "{}");
        let answer = self
            .call(party, random.below(2), random.chance(50), call)
            .await;
        let theirs = |open: &Open| open.party == party && open.token.user == user;
        let count = self.closes((4508, "disconnected"), theirs).await;
        assert_eq!(answer.json()["closed"], count, "{answer:?}");
        count > 0
    }

    /// A client goes, with a close frame or without.
    pub(super) async fn leave(&mut self, random: &mut Random) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let at = random.below(self.open.len());
        let mut open = self.open.remove(at);
        self.log.say(format!("{} leaves", open.name(&self.parties)));
        let labels = match random.chance(50) {
            true => {
                open.socket.close(1000, "").await;
                assert_eq!(open.socket.closed().await.0, 1000);
                "code=1000 reason=normal"
            }
            false => "code=1006 reason=client",
        };
        self.left(open.party, open.groups.len(), labels);
        true
    }

    /// All clients of a tenant go, and both replicas let go of it.
    pub(super) async fn let_go(&mut self, random: &mut Random) {
        let party = random.below(self.parties.len());
        let name = format!("tenant=\"{}\"", self.parties[party].tenant.name);
        self.log.say(format!("{} is let go", KINDS[party].word));
        self.open.retain(|open| open.party != party);
        for replica in &self.gateway.replicas {
            let gone = async || match replica.metrics().await.text().contains(&name) {
                true => Err("it is there"),
                false => Ok(()),
            };
            eventually(PATIENCE, "a tenant without sockets is let go", gone).await;
        }
    }

    pub(super) async fn invalidate(&mut self, random: &mut Random) {
        let party = random.below(self.parties.len());
        let user = *random.pick(&[ALICE, BOB]);
        if self.parties[party].inactive.contains(user) {
            return;
        }
        self.log
            .say(format!("invalidate {user} of {}", KINDS[party].word));
        if random.chance(50) {
            let message = json!({"v": 1, "op": "invalidate", "user_id": user});
            let key = format!("usergen:{user}");
            self.by_redis(party, &key, "fresh", &message).await;
        } else {
            assert_eq!(self.invalidated(party, random, user).await, 0);
        }
        self.parties[party].invalidated.insert(user.to_owned());
    }

    async fn invalidated(&self, party: usize, random: &mut Random, user: &str) -> u64 {
        let path = format!("users/{user}/invalidate");
        let call = ("POST", path.as_str(), "");
        let answer = self
            .call(party, random.below(2), random.chance(50), call)
            .await;
        let confirmed = answer.json()["replicas"]["confirmed"].as_u64();
        assert!(
            confirmed.is_some_and(|count| self.takes_part(count)),
            "{answer:?}"
        );
        answer.json()["closed"].as_u64().expect("a number")
    }

    /// A user becomes inactive in the database of one tenant, or active again.
    pub(super) async fn change_user(&mut self, random: &mut Random) -> bool {
        let party = random.below(self.parties.len());
        let user = BOB.to_owned();
        let activates = self.parties[party].inactive.remove(&user);
        self.log.say(format!(
            "{user} of {} is active: {activates}",
            KINDS[party].word
        ));
        let database = &self.parties[party].tenant.database;
        let update = format!("UPDATE auth_user SET is_active = {activates} WHERE id = {user}");
        database.execute(&update).await;
        let closed = self.invalidated(party, random, &user).await;
        self.parties[party].invalidated.insert(user.clone());
        if activates {
            assert_eq!(closed, 0);
            return false;
        }
        self.parties[party].inactive.insert(user.clone());
        let theirs = |open: &Open| open.party == party && open.token.user == user;
        let count = self.closes((4502, "user_inactive"), theirs).await;
        assert_eq!(closed, count);
        count > 0
    }

    pub(super) async fn suspend(&mut self, random: &mut Random) -> bool {
        let suspended = |at: &usize| self.parties[*at].suspended;
        // In most cases a tenant is served again, so that seldom more than one is not.
        let resumed = (0..self.parties.len()).find(suspended);
        let party = resumed.unwrap_or_else(|| random.below(self.parties.len()));
        let word = if resumed.is_some() {
            "resume"
        } else {
            "suspend"
        };
        self.log.say(format!("{word} {}", KINDS[party].word));
        let answer = self
            .call(party, random.below(2), true, ("POST", word, ""))
            .await;
        let confirmed = answer.json()["replicas"]["confirmed"].as_u64();
        assert!(
            confirmed.is_some_and(|count| self.takes_part(count)),
            "{answer:?}"
        );
        self.parties[party].suspended = resumed.is_none();
        if resumed.is_some() {
            return false;
        }
        let theirs = |open: &Open| open.party == party;
        let count = self.closes((4016, "tenant_suspended"), theirs).await;
        assert_eq!(answer.json()["closed"], count, "{answer:?}");
        count > 0
    }
}
