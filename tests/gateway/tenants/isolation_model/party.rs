//! The four tenants: as like each other as a configuration may make them, and what the model knows of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::database::{ALICE, BOB};
use crate::support::jwks::{Jwks, KID};
use crate::support::{Database, Gateway, RedisServer, Tenant, gateway, token};
use crate::tenants::registry::Store;

/// Everybody's issuer.
const ISSUER: &str = "https://issuer.test";

/// The settings in which the tenants differ.
pub(super) struct Kind {
    pub(super) word: &'static str,
    pub(super) prefix: &'static str,
    /// Two of them share a prefix.
    pub(super) namespace: &'static str,
    pub(super) hosts: &'static [&'static str],
    /// Ways to write a host of it.
    pub(super) spellings: &'static [&'static str],
    /// Its keys are those of the JWK set, which it shares; else it has one of its own.
    shares_keys: bool,
    /// `group_names = "any"`
    pub(super) any_names: bool,
    limits: &'static str,
    /// `limits.connections`
    pub(super) connections: usize,
    /// `limits.connections_per_user`
    pub(super) per_user: usize,
    pub(super) replaces: bool,
    /// `limits.publishes_per_second` is so low that it is reached.
    pub(super) publishes_are_limited: bool,
}

pub(super) const KINDS: [Kind; 4] = [
    Kind {
        word: "acme",
        prefix: "acme",
        namespace: "acme.",
        hosts: &["acme.example.test", "*.acme.example.test"],
        spellings: &[
            "acme.example.test",
            "ACME.Example.TEST",
            "acme.example.test.",
            "acme.example.test:8443",
            "acne.acme.example.test",
            "EU.acme.example.test.:443",
        ],
        shares_keys: false,
        any_names: false,
        limits: "connections_per_user = 3\nconnects_per_second = 1000",
        connections: 0,
        per_user: 3,
        replaces: false,
        publishes_are_limited: false,
    },
    Kind {
        word: "acne",
        prefix: "acne",
        namespace: "",
        hosts: &["*.example.test", "acne.test"],
        spellings: &[
            "acne.example.test",
            "acme-.example.test",
            "acne.test",
            "Acne.Test:1",
        ],
        shares_keys: true,
        any_names: true,
        limits: "connections = 5\nanonymous_connections = 5",
        connections: 5,
        per_user: 0,
        replaces: false,
        publishes_are_limited: false,
    },
    Kind {
        word: "a-cme",
        prefix: "acme",
        namespace: "a-cme.",
        hosts: &["a-cme.example.test"],
        spellings: &["a-cme.example.test", "A-CME.example.test."],
        shares_keys: true,
        any_names: false,
        limits: "publishes_per_second = 20",
        connections: 0,
        per_user: 0,
        replaces: false,
        publishes_are_limited: true,
    },
    Kind {
        word: "mixed",
        prefix: "Acme",
        namespace: "acme.",
        hosts: &["acme.example.test.mixed.test", "xn--acme-6qa.test"],
        spellings: &[
            "acme.example.test.mixed.test",
            "xn--acme-6qa.test",
            "XN--ACME-6QA.test",
        ],
        shares_keys: false,
        any_names: true,
        // A bucket of its own, which nothing here empties.
        limits: "connections_per_user = 2\non_excess = 'replace'\npublishes_per_second = 10",
        connections: 0,
        per_user: 2,
        replaces: true,
        publishes_are_limited: false,
    },
];

/// Unknown hosts that look like those of tenants.
pub(super) const NOBODYS: [&str; 9] = [
    "example.test",
    "acme",
    "a.b.acme.example.test",
    "acme.example.test.evil.test",
    "x.a-cme.example.test",
    "eu.acne.test",
    "acme.example.tests",
    "mixed.test",
    "127.0.0.1:8000",
];

const CHAT: &str = "path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n \
    consumer = { kind = 'broadcast', type = 'chat', stamp = ['user_id', 'username'] }";
const ANY: &str = "path = 'ws/any/<path:room>/'\n groups = ['{room}', 'chat_a']";

/// Lets anyone in, into the groups of the others.
const OPEN: &str = "path = 'ws/open/<slug:room>/'\n groups = ['chat_{room}']\n anonymous = true";

/// The interval of rechecks. The first one falls anywhere in it, and one in the middle of a sequence would close the sockets
/// of planted users, who are in no database, and add lookups.
const RARELY: &str = "8760h";

/// The place of the tenants' configurations.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Source {
    /// One file.
    File,
    /// A registry: replicas let go of those that have no sockets.
    Registry,
}

/// Two replicas of the four tenants on one Redis.
pub(super) async fn start(redis: &RedisServer, jwks: &Jwks, source: Source) -> Gateway {
    let mut builder = gateway()
        .redis(&redis.url())
        .replicas(2)
        .set("api.timeout", "5s")
        .set("denylist.recheck", RARELY)
        .set("server.heartbeat.interval", "10m");
    for kind in &KINDS {
        let database = match source {
            Source::File => Database::sqlite().await,
            // A tenant of a registry names no file of the gateway.
            Source::Registry => Database::postgres().await,
        };
        // Equal ids; the names tell whose record it is.
        let rename = format!(
            "UPDATE auth_user SET username = username || ' of {}'",
            kind.word
        );
        database.execute(&rename).await;
        builder = builder
            .tenant(kind.word)
            .users(&database)
            .with("users.cache_ttl", RARELY)
            .with("users.stale_ttl", RARELY)
            .with("hosts", kind.hosts.to_vec())
            .with("layer.prefix", kind.prefix)
            .with("layer.namespace", kind.namespace)
            .with("api_keys", vec![api_key(kind)])
            .with("token.issuer", ISSUER)
            .with_toml(&format!("[limits]\n{}", kind.limits))
            .route(CHAT)
            .route(OPEN)
            .route(ANY);
        if kind.any_names {
            builder = builder.with("layer.group_names", "any");
        }
        if kind.shares_keys {
            builder = builder
                .with("token.algorithm", "RS256")
                .with("token.jwk_url", jwks.url.as_str())
                .with("token.audience", kind.word);
        }
    }
    match source {
        Source::File => builder.start().await,
        Source::Registry => {
            let store = Store::postgres().await;
            let builder = store.holds(builder).set("registry.keep", "1s");
            builder.start().await
        }
    }
}

fn api_key(kind: &Kind) -> String {
    format!("the-api-key-of-{}-which-is-long-enough", kind.word)
}

/// A token as its client keeps it.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) user: String,
    pub(super) jti: String,
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
    pub(super) text: String,
}

impl Token {
    /// What an anonymous socket has in its place: no revocation and no user finds it.
    pub(super) fn none() -> Self {
        Self {
            user: "(none)".to_owned(),
            jti: "(none)".to_owned(),
            issued_at: i64::MAX,
            expires_at: i64::MAX,
            text: String::new(),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.text.is_empty()
    }
}

/// One tenant, and what must be true of it.
pub(super) struct Party {
    pub(super) kind: &'static Kind,
    pub(super) tenant: Tenant,
    pub(super) api_key: String,
    jwks: Arc<Jwks>,
    /// Every token that was made for it.
    pub(super) tokens: Vec<Token>,
    pub(super) suspended: bool,
    pub(super) denied: BTreeSet<String>,
    pub(super) user_cut_offs: BTreeMap<String, i64>,
    pub(super) cut_off: Option<i64>,
    /// Users in its database, and those that were planted in its cache.
    pub(super) users: BTreeSet<String>,
    pub(super) inactive: BTreeSet<String>,
    /// Whose records may be in Redis.
    pub(super) looked_up: BTreeSet<String>,
    pub(super) invalidated: BTreeSet<String>,
    pub(super) idempotency_keys: BTreeSet<String>,
    /// Groups that had a member once.
    pub(super) groups: BTreeSet<String>,
}

impl Party {
    pub(super) fn new(kind: &'static Kind, gateway: &Gateway, jwks: Arc<Jwks>) -> Self {
        Self {
            kind,
            tenant: gateway.named(kind.word).clone(),
            api_key: api_key(kind),
            jwks,
            tokens: Vec::new(),
            suspended: false,
            denied: BTreeSet::new(),
            user_cut_offs: BTreeMap::new(),
            cut_off: None,
            users: [ALICE, BOB].map(str::to_owned).into(),
            inactive: BTreeSet::new(),
            looked_up: BTreeSet::new(),
            invalidated: BTreeSet::new(),
            idempotency_keys: BTreeSet::new(),
            groups: BTreeSet::new(),
        }
    }

    /// A new token. Ids come from a count of each tenant's own, so that they are the same at all.
    pub(super) fn mint(&mut self, user: &str, issued_at: i64) -> Token {
        let jti = format!("jti-{}", self.tokens.len());
        let expires_at = token::now() + 3600;
        let claims = json!({
            "token_type": "access", "exp": expires_at, "iat": issued_at, "jti": jti, "user_id": user,
            "iss": ISSUER, "aud": self.kind.word, "tenant": self.tenant.name,
        });
        let token = Token {
            user: user.to_owned(),
            jti,
            issued_at,
            expires_at,
            text: self.sign(claims),
        };
        self.tokens.push(token.clone());
        token
    }

    fn sign(&self, mut claims: Value) -> String {
        if self.kind.shares_keys {
            return self.jwks.sign(&claims);
        }
        // Without an audience in the settings, one in the token is a mistake.
        claims.as_object_mut().unwrap().shift_remove("aud");
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": KID});
        token::sign_with_header(&self.tenant.key, &header, &claims)
    }

    /// Returns true if the denylist refuses the token.
    pub(super) fn denies(&self, token: &Token) -> bool {
        let under = |cut_off: Option<&i64>| cut_off.is_some_and(|at| token.issued_at <= *at);
        self.denied.contains(&token.jti)
            || under(self.user_cut_offs.get(&token.user))
            || under(self.cut_off.as_ref())
    }

    /// The Redis channel of a group.
    pub(super) fn channel(&self, group: &str) -> String {
        format!(
            "{}__group__{}{group}",
            self.kind.prefix, self.kind.namespace
        )
    }

    /// Names for the route whose groups are clients' choice: as hostile as the tenant's rule for names lets them be.
    pub(super) fn rooms(&self, others: &[Party]) -> Vec<String> {
        let mut rooms: Vec<String> = ["x__group__y", "__group__", "chat_b", "specific.chat_a"]
            .map(str::to_owned)
            .into();
        for other in others {
            rooms.push(other.channel("chat_a"));
            rooms.push(format!("{}specific.x", other.kind.prefix));
            if self.kind.any_names {
                rooms.push(other.tenant.redis_key("control"));
                rooms.push(format!(" {}", other.channel("chat_b")));
            }
        }
        if self.kind.any_names {
            rooms.extend(
                ["*", "chat_?", "{chat_a}", "\u{e9}", "lockgate::control"].map(str::to_owned),
            );
        }
        rooms
    }
}
