//! Every refusal of a tenant that needs no outage, as an HTTP answer and as a close frame.

use serde_json::{Value, json};

use crate::problem::{Problem, word};
use crate::support::database::{ALICE, CAROL};
use crate::support::socket::Dial;
use crate::support::{Database, Gateway, RedisServer, Tenant, gateway, token};

/// The password column of everybody, and its digest as simplejwt makes it: upper-case hexadecimal MD5.
const PASSWORD: &str = "md5$salt$hash";
const DIGEST: &str = "6CB8FEA8712AC65D22EC1C68BAA248BF";

const NOT_VALID: (u16, &str) = (4500, "token_not_valid");

/// A way to be refused: what to send, what comes as HTTP, and the close frame of `refusal = "close"`.
struct Case {
    name: &'static str,
    path: &'static str,
    origin: Option<&'static str>,
    token: Option<fn(&Tenant) -> String>,
    problem: Problem,
    close: (u16, &'static str),
}

impl Case {
    fn new(name: &'static str, problem: Problem, close: (u16, &'static str)) -> Self {
        Self {
            name,
            path: "/ws/chat/lobby/",
            origin: None,
            token: Some(|tenant| tenant.sign(&good(ALICE))),
            problem,
            close,
        }
    }

    /// The token fails one check.
    fn check(name: &'static str, check: &'static str, token: fn(&Tenant) -> String) -> Self {
        Self::new(name, Problem::token(check), NOT_VALID).token(token)
    }

    /// 401 with a word of its own.
    fn unauthorized(word: &'static str, code: u16, token: fn(&Tenant) -> String) -> Self {
        Self::new(word, Problem::new(401, word), (code, word)).token(token)
    }

    fn token(mut self, token: fn(&Tenant) -> String) -> Self {
        self.token = Some(token);
        self
    }

    fn dial(&self, gateway: &Gateway, tenant: &Tenant) -> Dial {
        let mut dial = gateway.replica().dial(tenant, self.path);
        if let Some(token) = self.token {
            dial = dial.token(&token(tenant));
        }
        if let Some(origin) = self.origin {
            dial = dial.header("Origin", origin);
        }
        dial
    }
}

/// Claims that pass every check of these tenants.
fn good(user_id: &str) -> Value {
    let mut claims = token::access(user_id);
    claims["iss"] = "us".into();
    claims["aud"] = "us".into();
    claims["hash_password"] = DIGEST.into();
    claims
}

/// Good claims of alice with one of them changed.
fn with(claim: &str, value: impl Into<Value>) -> Value {
    let mut claims = good(ALICE);
    claims[claim] = value.into();
    claims
}

/// Good claims of alice without one of them.
fn without(claim: &str) -> Value {
    let mut claims = good(ALICE);
    claims.as_object_mut().unwrap().shift_remove(claim);
    claims
}

fn token_cases() -> Vec<Case> {
    vec![
        Case::unauthorized("token_missing", 4512, |_| String::new()),
        Case::check("over 8 KiB", "size", |_| "x".repeat(8 * 1024 + 1)),
        Case::check("not a token", "format", |_| "abc".into()),
        Case::check("two segments", "format", |_| "abc.def".into()),
        Case::check("five segments", "format", |_| "a.b.c.d.e".into()),
        Case::check("algorithm none", "algorithm", |t| {
            token::sign_with_header(&t.key, &json!({"alg": "none"}), &good(ALICE))
        }),
        Case::check("another algorithm", "algorithm", |t| {
            token::sign_with_header(&t.key, &json!({"alg": "HS512"}), &good(ALICE))
        }),
        Case::check("another key", "signature", |_| {
            token::sign("some other key of thirty-two bytes", &good(ALICE))
        }),
        Case::check("from the future", "iat", |t| {
            t.sign(&with("iat", token::now() + 60))
        }),
        Case::check("for the future", "nbf", |t| {
            t.sign(&with("nbf", token::now() + 60))
        }),
        Case::check("without exp", "exp", |t| t.sign(&without("exp"))),
        Case::check("another issuer", "issuer", |t| t.sign(&with("iss", "them"))),
        Case::check("another audience", "audience", |t| {
            t.sign(&with("aud", "them"))
        }),
        Case::check("sub is a number", "sub", |t| t.sign(&with("sub", 1))),
        Case::check("without jti", "jti", |t| t.sign(&without("jti"))),
        Case::check("a refresh token", "token_type", |t| {
            t.sign(&with("token_type", "refresh"))
        }),
        Case::check("without a type", "token_type", |t| {
            t.sign(&without("token_type"))
        }),
        Case::check("without a user", "user_id", |t| t.sign(&without("user_id"))),
        Case::check("a user id that is no number", "user_id", |t| {
            t.sign(&with("user_id", "abc"))
        }),
        // Only the close frame says `token_expired`.
        Case::new("expired", Problem::token("exp"), (4001, "token_expired"))
            .token(|t| t.sign(&with("exp", token::now() - 1))),
        // Expired, and not only that.
        Case::check("expired and of another audience", "exp", |t| {
            let mut claims = with("exp", token::now() - 1);
            claims["aud"] = "them".into();
            t.sign(&claims)
        }),
        Case::unauthorized("token_revoked", 4501, |t| t.sign(&with("jti", "denied"))),
        Case::unauthorized("user_not_found", 4509, |t| t.sign(&good("99"))),
        // Beyond the column, and beyond 64 bits.
        Case::unauthorized("user_not_found", 4509, |t| t.sign(&good("4294967296"))),
        Case::unauthorized("user_not_found", 4509, |t| {
            t.sign(&good("99999999999999999999"))
        }),
        Case::unauthorized("user_inactive", 4502, |t| t.sign(&good(CAROL))),
        Case::unauthorized("password_changed", 4510, |t| {
            t.sign(&with("hash_password", "0"))
        }),
        Case::unauthorized("password_changed", 4510, |t| {
            t.sign(&without("hash_password"))
        }),
    ]
}

fn other_cases() -> Vec<Case> {
    let missing = Problem::new(401, "token_missing");
    let origin = Problem::new(403, "origin_not_allowed");
    let name = Problem::new(400, "group_name_not_valid");
    let forbidden = Problem::new(403, "group_forbidden");
    vec![
        Case {
            token: None,
            ..Case::new("no token", missing, (4512, "token_missing"))
        },
        Case {
            origin: Some("https://evil.example"),
            ..Case::new("a foreign page", origin, (4504, "origin_not_allowed"))
        },
        // The origin is looked at before the token.
        Case {
            origin: Some("https://evil.example"),
            token: None,
            ..Case::new(
                "a foreign page without a token",
                origin,
                (4504, "origin_not_allowed"),
            )
        },
        Case {
            path: "/ws/any/a%20b/",
            ..Case::new(
                "a name that is no group",
                name,
                (4513, "group_name_not_valid"),
            )
        },
        Case {
            path: "/ws/staff/7/",
            ..Case::new("not a staff member", forbidden, (4507, "group_forbidden"))
        },
    ]
}

/// Two tenants that differ in how they refuse.
async fn two_modes(database: &Database) -> Gateway {
    let mut builder = gateway();
    for refusal in ["http", "close"] {
        builder = builder
            .tenant(refusal)
            .users(database)
            .with("refusal", refusal)
            .with("token.issuer", "us")
            .with("token.audience", "us")
            .with("token.check_revoke_token", true)
            .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']")
            .route("path = 'ws/any/<str:room>/'\n groups = ['any_{room}']")
            .route(
                "path = 'ws/staff/<int:n>/'\n groups = ['staff_{n}']\n authorize = '''
                 SELECT 1 FROM auth_user WHERE id = :user_id AND is_staff AND :n > 0'''",
            );
    }
    builder.start().await
}

#[tokio::test]
async fn every_refusal_has_its_status_its_word_and_its_close_code() {
    let database = Database::postgres().await;
    let update = format!("UPDATE auth_user SET password = '{PASSWORD}'");
    database.execute(&update).await;
    let gateway = two_modes(&database).await;
    for mode in ["http", "close"] {
        let key = gateway.named(mode).redis_key("deny:jti:denied");
        let () = RedisServer::shared()
            .await
            .command(&["SET", &key, "1"])
            .await;
    }
    let cases = || token_cases().into_iter().chain(other_cases());
    let mut wrong = Vec::new();
    for case in cases() {
        let tenant = gateway.named("http");
        println!("{} as HTTP", case.name);
        match case.dial(&gateway, tenant).attempt().await {
            Err(refusal) => case.problem.is(&refusal, &tenant.name),
            Ok(_) => wrong.push(format!("{}: accepted", case.name)),
        }
        println!("{} as a close frame", case.name);
        let mut socket = case.dial(&gateway, gateway.named("close")).open().await;
        let (code, reason) = socket.closed().await;
        if (code, word(&reason)) != case.close {
            wrong.push(format!(
                "{}: {code} {reason}, not {:?}",
                case.name, case.close
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The token that all of these vary is accepted.
    let token = gateway.tenant().sign(&good(ALICE));
    gateway
        .replica()
        .dial(gateway.tenant(), "/ws/chat/lobby/")
        .token(&token)
        .open()
        .await;
    // And each is counted by its word.
    let tenant = &gateway.named("http").name;
    let metrics = gateway.replica().metrics().await;
    for result in [
        "token_missing",
        "token_not_valid",
        "token_revoked",
        "user_not_found",
        "user_inactive",
        "password_changed",
        "origin_not_allowed",
        "group_name_not_valid",
        "group_forbidden",
        "accepted",
    ] {
        let labels = [("tenant", tenant.as_str()), ("result", result)];
        assert!(
            metrics.value("lockgate_handshakes_total", &labels) > 0.0,
            "{result}"
        );
    }
}

#[tokio::test]
async fn what_is_refused_before_the_origin_is_http_in_both_modes() {
    let gateway = two_modes(&Database::postgres().await).await;
    for mode in ["http", "close"] {
        let tenant = gateway.named(mode);
        let token = tenant.sign(&good(ALICE));
        let problem = gateway
            .replica()
            .dial(tenant, "/nowhere/")
            .token(&token)
            .refused()
            .await;
        Problem::new(404, "route_not_found").is(&problem, &tenant.name);
    }
    let stranger = Dial::new(gateway.replica().server, "nobody.test", "/ws/chat/lobby/");
    let problem = stranger.token("x").refused().await;
    Problem::new(404, "tenant_not_found").is(&problem, "");
}

#[tokio::test]
async fn a_denied_value_of_any_kind_counts_and_a_cutoff_binds_what_was_issued_by_then() {
    let redis = RedisServer::shared().await;
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let claims = token::access(ALICE);
    let issued = claims["iat"].as_i64().unwrap();
    let revoked = Problem::new(401, "token_revoked");
    let unavailable = Problem::new(503, "unavailable");
    let dial = |claims: &Value| {
        let token = tenant.sign(claims);
        gateway
            .replica()
            .dial(tenant, "/ws/chat/lobby/")
            .token(&token)
    };
    let deny = async |key: &str, value: &str| {
        let () = redis.command(&["SET", &tenant.redis_key(key), value]).await;
    };
    let forget = async |key: &str| {
        let _: u32 = redis.command(&["DEL", &tenant.redis_key(key)]).await;
    };

    let jti = format!("deny:jti:{}", claims["jti"].as_str().unwrap());
    for value in ["1", "0", "", "anything"] {
        deny(&jti, value).await;
        revoked.is(&dial(&claims).refused().await, &tenant.name);
    }
    forget(&jti).await;
    dial(&claims).open().await;

    let user = format!("deny:user:{ALICE}");
    for key in [user.as_str(), "deny:all"] {
        deny(key, &issued.to_string()).await;
        revoked.is(&dial(&claims).refused().await, &tenant.name);
        deny(key, &(issued - 1).to_string()).await;
        dial(&claims).open().await;
        // No `iat`: nothing says that it was issued later.
        let mut undated = claims.clone();
        undated.as_object_mut().unwrap().shift_remove("iat");
        revoked.is(&dial(&undated).refused().await, &tenant.name);
        // A value that cannot be read must not count as "not denied".
        deny(key, "soon").await;
        unavailable.is(&dial(&claims).refused().await, &tenant.name);
        forget(key).await;
        let _: u32 = redis.command(&["LPUSH", &tenant.redis_key(key), "1"]).await;
        unavailable.is(&dial(&claims).refused().await, &tenant.name);
        forget(key).await;
    }
    dial(&claims).open().await;
}

#[tokio::test]
async fn no_unverified_token_costs_a_query() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let queries = async || {
        let metrics = gateway.replica().metrics().await;
        let labels = [("tenant", tenant.name.as_str())];
        metrics.value("lockgate_user_queries_total", &[])
            + metrics.value("lockgate_user_lookups_total", &labels)
    };
    let before = queries().await;
    for user in 0..20 {
        let forged = token::sign(
            "some other key of thirty-two bytes",
            &token::access(&user.to_string()),
        );
        gateway
            .replica()
            .dial(tenant, "/ws/chat/lobby/")
            .token(&forged)
            .refused()
            .await;
    }
    assert_eq!(queries().await, before);
}
