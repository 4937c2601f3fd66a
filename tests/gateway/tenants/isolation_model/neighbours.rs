//! Steps in which a tenant tries what is another's: its key at the other's API, its records in the other's cache.

use serde_json::{Value, json};

use super::party::{KINDS, Token};
use super::random::Random;
use super::world::World;
use crate::support::socket::Dial;
use crate::support::token;

impl World {
    /// A tenant's key at another tenant, which answers as one that does not exist; and a look with the right one.
    pub(super) async fn anothers_key(&mut self, random: &mut Random) {
        let (of, at) = self.two(random);
        self.log.say(format!(
            "the key of {} at {}",
            KINDS[of].word, KINDS[at].word
        ));
        let event = r#"{"type":"x","n":0}"#;
        let cut_off = json!({"issued_before": token::now()}).to_string();
        let calls = [
            ("POST", "groups/chat_a/send", event),
            (
                "POST",
                "send",
                r#"{"messages":[{"group":"chat_a","event":{"type":"x"}}]}"#,
            ),
            ("POST", "users/1/send", event),
            ("POST", "users/1/disconnect", "{}"),
            ("POST", "users/1/invalidate", ""),
            ("POST", "revocations", &cut_off),
            ("GET", "connections", ""),
            ("GET", "groups/chat_a", ""),
            ("POST", "suspend", ""),
            ("POST", "resume", ""),
        ];
        let (method, path, body) = *random.pick(&calls);
        let replica = &self.gateway.replicas[random.below(2)];
        let mut answers = Vec::new();
        for name in [self.parties[at].tenant.name.as_str(), "nobody"] {
            let path = format!("/v1/tenants/{name}/{path}");
            let key = &self.parties[of].api_key;
            let answer = replica.api(key, method, &path, body).await;
            assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
            answers.push(answer.body);
        }
        assert_eq!(answers[0], answers[1]);
        let answer = self.call(at, 0, false, ("GET", "connections?limit=1000", ""));
        let answer = answer.await.json();
        let list = answer["sockets"].as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut found: Vec<_> = list
            .map(|socket| {
                let user = match &socket["user_id"] {
                    Value::Null => Token::none().user,
                    user => text(user),
                };
                (user, text(&socket["path"]))
            })
            .collect();
        let theirs = self.open.iter().filter(|open| open.party == at);
        let mut expected: Vec<_> = theirs
            .map(|open| (open.token.user.clone(), open.path.clone()))
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{}", KINDS[at].word);
    }

    /// A record in one tenant's cache: its user is let in there, and nowhere else is there such a user.
    pub(super) async fn plant(&mut self, random: &mut Random) {
        let (of, at) = self.two(random);
        let tokens: usize = self.parties.iter().map(|party| party.tokens.len()).sum();
        let user = (1000 + tokens).to_string();
        let replica = random.below(2);
        self.log.say(format!(
            "plant user {user} at {}, not at {}",
            KINDS[of].word, KINDS[at].word
        ));
        let name = self.username(of, &user);
        let id: u64 = user.parse().expect("a number");
        let record = json!({
            "v": 1, "tenant": self.parties[of].tenant.name, "id": user, "fetched_at": token::now(), "gen": "",
            "user": {"id": id, "username": name, "is_active": true},
        });
        // Under the key of the other, too: it names its tenant.
        for party in [of, at] {
            let key = self.parties[party]
                .tenant
                .redis_key(&format!("user:{user}"));
            let record = record.to_string();
            let set = [b"SET", key.as_bytes(), record.as_bytes(), b"EX", b"3600"];
            let () = self.command(&set).await;
        }
        self.parties[of].users.insert(user.clone());
        for party in [at, of] {
            self.clock += 1;
            let clock = self.clock;
            let token = self.parties[party].mint(&user, clock);
            let host = *random.pick(KINDS[party].spellings);
            let server = self.gateway.replicas[replica].server;
            let dial = Dial::new(server, host, "/ws/chat/a/");
            let place = ("/ws/chat/a/".to_owned(), vec!["chat_a".to_owned()]);
            let words = format!("{} {user} connects", KINDS[party].word);
            self.knock(party, replica, token, place, dial, words).await;
        }
    }
}
