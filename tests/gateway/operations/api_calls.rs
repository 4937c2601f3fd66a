//! The calls of the management API, on two replicas: each acts on the fleet, and a tenant's key opens its tenant only.

use serde_json::{Value, json};

use crate::support::database::{ALICE, BOB};
use crate::support::django::python;
use crate::support::http::{Response, request};
use crate::support::process::Program;
use crate::support::replica::LOCKGATE;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway, scratch};

const CHAT: &str = "/ws/chat/lobby/";
const OWN_KEY: &str = "acmes-own-key-which-is-long-enough";

async fn call(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Response {
    let path = path.replace("TENANT", &gateway.tenant().name);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let replica = &gateway.replicas[gateway.replicas.len() - 1];
    replica.api(&gateway.api_key, method, &path, &body).await
}

/// Two replicas of a tenant that know each other.
async fn two() -> Gateway {
    let gateway = gateway()
        .replicas(2)
        .tenant("acme")
        .with("api_keys", vec![OWN_KEY])
        .tenant("other")
        .start()
        .await;
    eventually(PATIENCE, "the replicas know each other", async || {
        let answer = call(
            &gateway,
            "GET",
            "/v1/tenants/TENANT/connections",
            &Value::Null,
        )
        .await;
        let confirmed = answer.json()["replicas"]["confirmed"] == 2;
        if confirmed { Ok(()) } else { Err(answer) }
    })
    .await;
    gateway
}

#[tokio::test]
async fn calls_act_on_every_replica_and_say_which_confirmed() {
    let gateway = two().await;
    let tenant = gateway.tenant();
    let everybody = json!({"expected": 2, "confirmed": 2, "missing": []});
    let mut alice = Vec::new();
    for replica in &gateway.replicas {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        alice.push(dial.open().await);
    }
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut bob = dial.token(&tenant.token(BOB)).open().await;

    let list = call(
        &gateway,
        "GET",
        "/v1/tenants/TENANT/connections?limit=2",
        &Value::Null,
    )
    .await;
    let first = list.json();
    assert_eq!(first["connections"], 3);
    assert_eq!(first["replicas"], everybody);
    let cursor = first["cursor"].as_str().unwrap();
    let path = format!("/v1/tenants/TENANT/groups/chat_lobby?cursor={cursor}");
    let second = call(&gateway, "GET", &path, &Value::Null).await.json();
    let sockets = [&first, &second].map(|page| page["sockets"].as_array().unwrap().clone());
    let sockets = sockets.concat();
    let of = |user: &str| sockets.iter().filter(|s| s["user_id"] == user).count();
    assert_eq!(
        (sockets.len(), of(ALICE), of(BOB)),
        (3, 2, 1),
        "{sockets:?}"
    );
    assert!(sockets.iter().all(|socket| socket["path"] == CHAT));
    assert!(second["cursor"].is_null());

    let event = json!({"type": "note", "n": 1});
    let sent = call(&gateway, "POST", "/v1/tenants/TENANT/users/1/send", &event).await;
    let expected = json!({"published": 1, "delivered": 2, "replicas": everybody});
    assert_eq!(sent.json(), expected);
    for socket in &mut alice {
        assert_eq!(socket.next_json().await, json!({"n": 1}));
    }
    let messages = json!({"messages": [
        {"group": "chat_lobby", "event": {"type": "x", "n": 2}},
        {"group": "not a name", "event": {"type": "x"}},
        {"group": "chat_lobby", "event": {"n": 3}},
        {"group": "chat_lobby", "event": {"type": "x", "n": 4}},
    ]});
    let results = call(&gateway, "POST", "/v1/tenants/TENANT/send", &messages).await;
    let refused = |code: &str, detail: &str| json!({"code": code, "detail": detail});
    let name =
        "A group name must be 1 to 99 ASCII letters, digits, hyphens, underscores and periods.";
    let event = "An event must be a JSON object, at most 64 levels deep, with a text `type` that does not begin with `_` or `.`. MessagePack carries no integer beyond 64 bits, and JSON no infinite number.";
    let expected = json!({"results": [{"published": 1}, refused("group_name_not_valid", name),
        refused("event_not_valid", event), {"published": 1}]});
    assert_eq!(results.json(), expected);
    for socket in alice.iter_mut().chain([&mut bob]) {
        assert_eq!(socket.next_json().await, json!({"n": 2}));
        assert_eq!(socket.next_json().await, json!({"n": 4}));
    }
    let closing = json!({"code": 4321, "reason": "moved"});
    let path = "/v1/tenants/TENANT/users/1/disconnect";
    let closed = call(&gateway, "POST", path, &closing).await;
    assert_eq!(closed.json(), json!({"closed": 2, "replicas": everybody}));
    for socket in &mut alice {
        assert_eq!(socket.closed().await, (4321, "moved".into()));
    }
    let closed = call(
        &gateway,
        "POST",
        "/v1/tenants/TENANT/users/2/disconnect",
        &json!({}),
    )
    .await;
    assert_eq!(closed.json()["closed"], 1);
    assert_eq!(bob.closed().await, (4508, "disconnected".into()));

    let dial = gateway.replica().dial(tenant, CHAT);
    let mut socket = dial.token(&tenant.token(BOB)).open().await;
    let suspended = call(&gateway, "POST", "/v1/tenants/TENANT/suspend", &Value::Null).await;
    assert_eq!(
        suspended.json(),
        json!({"closed": 1, "replicas": everybody})
    );
    assert_eq!(socket.closed().await.0, 4016);
    let all = call(&gateway, "GET", "/v1/tenants", &Value::Null)
        .await
        .json();
    let suspended = |name: &str| {
        let tenants = all["tenants"].as_array().unwrap();
        let found = tenants.iter().find(|tenant| tenant["name"] == name);
        found.unwrap()["suspended"].clone()
    };
    assert_eq!(suspended(&tenant.name), true);
    assert_eq!(suspended(&gateway.named("other").name), false);
    call(&gateway, "POST", "/v1/tenants/TENANT/resume", &Value::Null).await;
    let dial = gateway.replica().dial(tenant, CHAT);
    dial.token(&tenant.token(BOB)).open().await;
}

#[tokio::test]
async fn an_invalidated_user_is_looked_at_before_the_answer() {
    let database = Database::postgres().await;
    let gateway = gateway().tenant("acme").users(&database).start().await;
    let mut socket = gateway.open(CHAT).await;
    database
        .execute("UPDATE auth_user SET is_active = false WHERE id = 1")
        .await;
    let path = "/v1/tenants/TENANT/users/1/invalidate";
    let answer = call(&gateway, "POST", path, &Value::Null).await;
    assert_eq!(answer.json()["closed"], 1, "{answer:?}");
    assert_eq!(socket.closed().await.0, 4502);
}

/// The call takes `api.timeout`, and names the replica that is missing.
#[tokio::test]
async fn a_replica_that_does_not_answer_in_time_is_named() {
    let gateway = two().await;
    gateway.replicas[0].process.freeze().await;
    let path = "/v1/tenants/TENANT/users/1/disconnect";
    let answer = call(&gateway, "POST", path, &json!({})).await.json();
    let replicas = &answer["replicas"];
    assert_eq!(
        (&replicas["expected"], &replicas["confirmed"]),
        (&2.into(), &1.into())
    );
    assert_eq!(replicas["missing"].as_array().map(Vec::len), Some(1));
    gateway.replicas[0]
        .process
        .signal(rustix::process::Signal::CONT);
}

#[tokio::test]
async fn a_call_that_is_repeated_with_its_key_is_carried_out_once() {
    let gateway = gateway().tenant("acme").start().await;
    let mut socket = gateway.open(CHAT).await;
    let replica = gateway.replica();
    let bearer = format!("Bearer {}", gateway.api_key);
    let send = async |key: &str, group: &str, body: &str| {
        let path = format!("/v1/tenants/{}/groups/{group}/send", gateway.tenant().name);
        let headers = [("Authorization", &*bearer), ("Idempotency-Key", key)];
        let answer = request(replica.api, "POST", &path, &headers, body).await;
        (answer.status, answer.json())
    };
    let (first, second) = (r#"{"type":"x","n":1}"#, r#"{"type":"x","n":2}"#);
    let published = (200, json!({"published": 1}));
    assert_eq!(send("k1", "chat_lobby", first).await, published);
    assert_eq!(send("k1", "chat_lobby", first).await, published);
    assert_eq!(send("k2", "chat_lobby", second).await, published);
    for (group, body) in [("chat_lobby", second), ("chat_attic", first)] {
        let (status, problem) = send("k1", group, body).await;
        assert_eq!(
            (status, &problem["code"]),
            (409, &"idempotency_key_reused".into())
        );
    }
    assert_eq!(send("a b", "chat_lobby", first).await.0, 400);
    assert_eq!(socket.next_json().await, json!({"n": 1}));
    assert_eq!(socket.next_json().await, json!({"n": 2}));
    assert!(socket.ping().await.is_empty());
}

#[tokio::test]
async fn a_tenants_key_opens_nothing_of_another_whether_it_exists_or_not() {
    let gateway = gateway()
        .tenant("acme")
        .with("api_keys", vec![OWN_KEY])
        .tenant("other")
        .start()
        .await;
    let other = gateway.named("other").name.clone();
    for (method, path) in [
        ("POST", "groups/g/send"),
        ("POST", "send"),
        ("POST", "users/1/send"),
        ("POST", "users/1/disconnect"),
        ("POST", "users/1/invalidate"),
        ("POST", "revocations"),
        ("GET", "connections"),
        ("GET", "groups/g"),
        ("GET", "users/1/connections"),
        ("POST", "users/1/groups/g"),
        ("DELETE", "users/1/groups/g"),
        ("POST", "connections/c/disconnect"),
        ("POST", "connections/c/groups/g"),
        ("DELETE", "connections/c/groups/g"),
        ("POST", "suspend"),
        ("POST", "resume"),
    ] {
        let mut answers = Vec::new();
        for tenant in [other.as_str(), "nobody"] {
            let path = format!("/v1/tenants/{tenant}/{path}");
            let answer = gateway.replica().api(OWN_KEY, method, &path, "{}").await;
            assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
            answers.push(answer.body);
        }
        assert_eq!(answers[0], answers[1]);
    }
    let own = &gateway.tenant().name;
    for (method, path) in [
        ("GET", "/v1/tenants".to_owned()),
        ("POST", "/v1/reload".to_owned()),
        ("POST", format!("/v1/tenants/{own}/suspend")),
        ("POST", format!("/v1/tenants/{own}/resume")),
    ] {
        let answer = gateway.replica().api(OWN_KEY, method, &path, "").await;
        let code = answer.json()["code"].clone();
        assert_eq!(
            (answer.status, code),
            (403, "operators_only".into()),
            "{path}"
        );
    }
}

/// Calls with a wrong key, path, method, header or body, each refused with its code.
#[tokio::test]
async fn a_call_that_is_not_valid_is_told_why_and_does_nothing() {
    let gateway = gateway().tenant("acme").start().await;
    let mut socket = gateway.open(CHAT).await;
    let deep = format!(
        r#"{{"type":"x","a":{}{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    for (method, path, body, status) in [
        ("POST", "users/1/disconnect", r#"{"code":1006}"#, 400),
        ("POST", "users/1/disconnect", r#"{"code":5000}"#, 400),
        ("POST", "users/1/disconnect", r#"{"code":"4000"}"#, 400),
        ("POST", "users/1/disconnect", r#"{"cod":4000}"#, 400),
        ("POST", "users/1/disconnect", "{", 400),
        ("POST", "users/1/disconnect", "[null,null]", 400),
        ("POST", "connections/c/disconnect", r#"{"code":1006}"#, 400),
        ("POST", "connections/c/disconnect", "", 415),
        ("POST", "connections/c/disconnect", "{}", 404),
        ("GET", "connections/c/disconnect", "", 405),
        (
            "POST",
            "send",
            r#"[[{"group":"g","event":{"type":"x"}}]]"#,
            400,
        ),
        ("POST", "send", r#"{"messages":[["g",{"type":"x"}]]}"#, 400),
        ("GET", "users/1/disconnect", "", 405),
        ("POST", "users/99/disconnect", "{}", 200),
        ("POST", "users/nobody*/disconnect", "{}", 400),
        ("POST", "groups/chat_lobby/send", &deep, 400),
        ("POST", "groups/chat_lobby/send", "", 415),
        ("POST", "send", r#"{"messages":[]}"#, 400),
        ("POST", "send", r#"{"message":[]}"#, 400),
        ("POST", "send", r#"{"messages":[{"group":"g"}]}"#, 400),
        ("POST", "revocations", "{}", 400),
        ("POST", "revocations", r#"{"jti":"x"}"#, 400),
        (
            "POST",
            "revocations",
            r#"{"jti":"x","exp":1,"user_id":"1"}"#,
            400,
        ),
        ("POST", "revocations", r#"{"user_id":1.5}"#, 400),
        (
            "POST",
            "revocations",
            r#"{"issued_before":1700000000000}"#,
            400,
        ),
        ("POST", "revocations", r#"{"token":"rubbish"}"#, 400),
        ("GET", "connections?limit=0", "", 400),
        ("GET", "connections?limit=1001", "", 400),
        ("GET", "connections?page=2", "", 400),
        ("GET", "groups/a%20b", "", 400),
        ("GET", "users/1/connections?limit=0", "", 400),
        ("GET", "users/nobody*/connections", "", 400),
        ("GET", "users/1/groups/g", "", 405),
        ("GET", "nothing", "", 404),
    ] {
        let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
        let replica = gateway.replica();
        let answer = replica.api(&gateway.api_key, method, &path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        if status != 200 {
            let kind = answer.header("content-type");
            assert_eq!(kind, Some("application/problem+json"), "{path}");
        }
    }
    assert!(socket.ping().await.is_empty());
}

/// Those of `/openapi.json` and of the probes had an empty body.
#[tokio::test]
async fn what_a_listener_does_not_have_is_told_as_a_problem() {
    let gateway = gateway().tenant("acme").start().await;
    let (api, admin) = (gateway.replica().api, gateway.replica().admin);
    for (listener, method, path, status, code) in [
        (api, "POST", "/openapi.json", 405, "method_not_allowed"),
        (admin, "POST", "/livez", 405, "method_not_allowed"),
        (admin, "DELETE", "/readyz", 405, "method_not_allowed"),
        (admin, "POST", "/metrics", 405, "method_not_allowed"),
        (admin, "PUT", "/metrics/tenants", 405, "method_not_allowed"),
        (admin, "GET", "/nothing", 404, "not_found"),
    ] {
        let answer = request(listener, method, path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("application/problem+json"), "{method} {path}");
        assert_eq!(answer.json()["code"], code, "{method} {path}");
        let allowed = (status == 405).then_some("GET,HEAD");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
}

#[tokio::test]
async fn the_calls_are_described_to_whoever_asks() {
    // The group of the paths keeps all that a group can keep.
    let groups = "groups = [{ name = 'g', history = {}, presence = {} }]";
    let gateway = gateway().tenant("acme").with_toml(groups).start().await;
    let answer = request(gateway.replica().api, "GET", "/openapi.json", &[], "").await;
    assert_eq!(answer.status, 200);
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let own = &gateway.tenant().name;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let path = path.replace("{tenant}", own);
            let path = path.replace("{user}", "1").replace("{group}", "g");
            let path = path.replace("{channel}", "c");
            let method = method.to_uppercase();
            // Every call that is described is there, and opens to a key alone.
            let answer = request(gateway.replica().api, &method, &path, &[], "").await;
            assert_eq!(answer.status, 401, "{method} {path}");
            let replica = gateway.replica();
            let answer = replica.api(&gateway.api_key, &method, &path, "").await;
            let code = &answer.json()["code"];
            let there = matches!(answer.status, 200 | 415)
                || code == "connection_not_found"
                || code == "registry_not_configured";
            assert!(there, "{method} {path}: {answer:?}");
        }
    }
}

/// A fuzzer that takes the documentation at its word: no answer is a 5xx, none is undocumented, and each has the form
/// that is promised.
#[tokio::test]
async fn the_documented_calls_withstand_a_fuzzer() {
    let gateway = gateway().tenant("acme").start().await;
    let url = format!("http://{}/openapi.json", gateway.replica().api);
    let bearer = format!("Authorization: Bearer {}", gateway.api_key);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let ran = tokio::task::spawn_blocking(move || {
        // It keeps what it found beside where it runs, and would begin with that the next time.
        let dir = scratch("fuzzer");
        // As a module: the script beside Python names the folder that the environment was made in.
        Program::new("schemathesis", python())
            .dir(dir.path())
            .args(["-m", "schemathesis.cli"])
            .args(["run", &url, "--header", &bearer, "--checks", checks])
            .args(["--seed", "7", "--max-examples", "25"])
            .run();
    });
    ran.await.unwrap();
    assert_eq!(gateway.replica().readyz().await.status, 200);
}

/// `/readyz` used to know no other case of the scheme than `Bearer`, unlike the API.
#[tokio::test]
async fn the_scheme_of_a_key_has_any_case_on_both_listeners() {
    let gateway = gateway().tenant("acme").start().await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let key = format!("{scheme} {}", gateway.api_key);
        let headers = [("Authorization", key.as_str())];
        let ready = request(gateway.replica().admin, "GET", "/readyz", &headers, "").await;
        assert!(ready.json()["tenants"].is_object(), "{ready:?}");
        let listed = request(gateway.replica().api, "GET", "/v1/tenants", &headers, "").await;
        assert_eq!(listed.status, 200, "{listed:?}");
    }
}

#[tokio::test]
async fn a_reload_is_announced_and_a_mistake_is_not() {
    // Of its own: the deployment's channel is everybody's on one Redis.
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .replicas(2)
        .tenant("acme")
        .start()
        .await;
    eventually(PATIENCE, "both replicas apply it", async || {
        let answer = call(&gateway, "POST", "/v1/reload", &Value::Null).await;
        let body = answer.json();
        match (answer.status, body["applied"].as_u64()) {
            (200, Some(2)) => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    std::fs::write(&gateway.config, format!("nonsense = 1\n{text}")).unwrap();
    let answer = call(&gateway, "POST", "/v1/reload", &Value::Null).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["code"], "configuration_not_valid");
}

#[tokio::test]
async fn a_tenant_whose_redis_is_away_hides_no_other_from_an_operator() {
    let own = RedisServer::start().await;
    let gateway = gateway()
        .tenant("acme")
        .tenant("lost")
        .with("redis.url", own.url())
        .start()
        .await;
    let _socket = gateway.open(CHAT).await;
    let counts = async || {
        let answer = call(&gateway, "GET", "/v1/tenants", &Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let json = answer.json();
        let tenants = json["tenants"].as_array().expect("a list").iter();
        let counts: Vec<_> = tenants
            .map(|tenant| tenant["connections"].clone())
            .collect();
        counts
    };
    assert_eq!(counts().await, [json!(1), json!(0)]);
    own.kill();
    eventually(PATIENCE, "what cannot be asked is null", async || {
        let counts = counts().await;
        if counts == [json!(1), Value::Null] {
            Ok(())
        } else {
            Err(counts)
        }
    })
    .await;
}

/// A tenant with one kind of ids, and one user of it.
struct Ids {
    word: &'static str,
    id_type: &'static str,
    user_id_field: &'static str,
    /// The canonical id, which the token carries too.
    id: &'static str,
    /// Other forms of it.
    same: &'static [&'static str],
    /// Ids of others.
    others: &'static [&'static str],
    /// A value that is not an id.
    none: &'static [&'static str],
}

const IDS: [Ids; 4] = [
    Ids {
        word: "int",
        id_type: "int",
        user_id_field: "id",
        id: "7",
        same: &["07", " 7", "+7", "7 ", "0_7", "\u{ff17}"],
        others: &["8", "-7"],
        none: &["alice", "7.0", "0x7", "7;8", "99999999999999999999", " "],
    },
    Ids {
        word: "uuid",
        id_type: "uuid",
        user_id_field: "id",
        id: "7d444840-9dc0-11d1-b245-5ffdce74fad2",
        same: &[
            "7D444840-9DC0-11D1-B245-5FFDCE74FAD2",
            "7d4448409dc011d1b2455ffdce74fad2",
            "{7d444840-9dc0-11d1-b245-5ffdce74fad2}",
            "urn:uuid:7d444840-9dc0-11d1-b245-5ffdce74fad2",
        ],
        others: &["00000000-0000-4000-8000-000000000000"],
        none: &["7", "7d444840-9dc0-11d1-b245-5ffdce74fad", "x"],
    },
    Ids {
        word: "text",
        id_type: "text",
        user_id_field: "id",
        id: "07",
        same: &[],
        others: &["7", " 07", "+07", "07 "],
        none: &["a\0"],
    },
    // Another field is compared as text, whatever the type of the primary key. Before, `int` found no user by it.
    Ids {
        word: "field",
        id_type: "int",
        user_id_field: "badge",
        id: "07",
        same: &[],
        others: &["7", "+7", "x"],
        none: &["a\0"],
    },
];

/// Such forms used to be 200, and nothing happened.
#[tokio::test]
async fn calls_take_an_id_in_every_form_that_a_token_may_have_it_in() {
    let dir = scratch("ids");
    let mut builder = gateway();
    for ids in &IDS {
        let url = format!("sqlite://{}", dir.path().join(ids.word).display());
        let database = Database::at(format!("{url}?mode=rwc"));
        let column = match ids.id_type {
            "int" if ids.user_id_field == "id" => "INTEGER",
            _ => "TEXT",
        };
        database
            .execute(&format!(
                "CREATE TABLE people (key {column}, is_active BOOLEAN)"
            ))
            .await;
        database
            .execute(&format!("INSERT INTO people VALUES ('{}', 1)", ids.id))
            .await;
        let field = ids.user_id_field;
        let query = match field {
            "id" => "SELECT key AS id, is_active FROM people WHERE key IN (:user_ids)".to_owned(),
            _ => format!(
                "SELECT 1 AS id, key AS {field}, is_active FROM people WHERE key IN (:user_ids)"
            ),
        };
        builder = builder
            .tenant(ids.word)
            .users(&database)
            .with("users.id_type", ids.id_type)
            .with("users.query", query)
            .with("token.user_id_field", field);
    }
    let gateway = builder.start().await;
    for ids in &IDS {
        let tenant = gateway.named(ids.word);
        let call = async |id: &str, verb: &str, body: &Value| {
            let path = match verb {
                "revocations" => format!("/v1/tenants/{}/revocations", tenant.name),
                _ => format!("/v1/tenants/{}/users/{}/{verb}", tenant.name, encoded(id)),
            };
            let body = body.to_string();
            let replica = gateway.replica();
            replica.api(&gateway.api_key, "POST", &path, &body).await
        };
        let open = async || {
            let dial = gateway.replica().dial(tenant, CHAT);
            dial.token(&tenant.token(ids.id)).open().await
        };
        let event = json!({"type": "note", "n": 1});
        // A cut-off before every token: stored for the user, and no socket is closed.
        let revoke = |id: &str| json!({"user_id": id, "issued_before": 1});
        let mut socket = open().await;
        for id in [&[ids.id], ids.same].concat() {
            let name = ids.word;
            let sent = call(id, "send", &event).await;
            // The socket that was closed before may still count.
            let reached = |answer: &Response, field: &str| answer.json()[field].as_u64() > Some(0);
            assert!(reached(&sent, "delivered"), "{name} {id:?}: {sent:?}");
            assert_eq!(socket.next_json().await, json!({"n": 1}));
            let invalidated = call(id, "invalidate", &Value::Null).await;
            assert_eq!(invalidated.status, 200, "{name} {id:?}: {invalidated:?}");
            let closed = call(id, "disconnect", &json!({})).await;
            assert!(reached(&closed, "closed"), "{name} {id:?}: {closed:?}");
            assert_eq!(socket.closed().await.0, 4508);
            let key = tenant.redis_key(&format!("deny:user:{}", ids.id));
            let redis = RedisServer::shared().await;
            let revoked = call(id, "revocations", &revoke(id)).await;
            assert_eq!(revoked.status, 200, "{name} {id:?}: {revoked:?}");
            let taken: u32 = redis.command(&["DEL", &key]).await;
            assert_eq!(taken, 1, "{name} {id:?} is not revoked under {key}");
            socket = open().await;
        }
        for id in ids.others {
            let sent = call(id, "send", &event).await;
            assert_eq!(sent.json()["delivered"], 0, "{} {id:?}: {sent:?}", ids.word);
        }
        for id in ids.none {
            for (verb, body) in [
                ("send", event.clone()),
                ("disconnect", json!({})),
                ("invalidate", Value::Null),
                ("revocations", revoke(id)),
            ] {
                let refused = call(id, verb, &body).await;
                assert_eq!(
                    refused.status, 400,
                    "{} {id:?} {verb}: {refused:?}",
                    ids.word
                );
                assert_eq!(refused.json()["code"], "user_id_not_valid", "{id:?} {verb}");
            }
        }
        assert!(socket.ping().await.is_empty());
    }
    // The command line goes the same way.
    let tenant = gateway.named("int");
    let mut socket = {
        let dial = gateway.replica().dial(tenant, CHAT);
        dial.token(&tenant.token("7")).open().await
    };
    let revoke = |user: &str| {
        let url = format!("http://{}", gateway.replica().api);
        std::process::Command::new(LOCKGATE)
            .args(["revoke", "--tenant", &tenant.name, "--user", user])
            .args(["--url", &url, "--api-key-file"])
            .arg(&gateway.key_file)
            .output()
            .expect("the binary starts")
    };
    let refused = revoke("seven");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("users.id_type"), "{said}");
    assert_eq!(revoke("+07").status.code(), Some(0));
    assert_eq!(socket.closed().await.0, 4501);
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Every call of the API beside the scope that it needs.
const SCOPES: [(&str, &str, &str); 24] = [
    ("GET", "/v1/tenants", "tenants:read"),
    ("GET", "/v1/tenants/TENANT", "tenants:read"),
    ("PUT", "/v1/tenants/TENANT", "tenants:write"),
    ("DELETE", "/v1/tenants/TENANT", "tenants:write"),
    ("POST", "/v1/tenants/TENANT/suspend", "suspend"),
    ("POST", "/v1/tenants/TENANT/resume", "suspend"),
    ("POST", "/v1/tenants/TENANT/groups/g/send", "send"),
    ("POST", "/v1/tenants/TENANT/send", "send"),
    ("POST", "/v1/tenants/TENANT/users/1/send", "send"),
    (
        "POST",
        "/v1/tenants/TENANT/users/1/disconnect",
        "disconnect",
    ),
    (
        "POST",
        "/v1/tenants/TENANT/connections/c/disconnect",
        "disconnect",
    ),
    (
        "POST",
        "/v1/tenants/TENANT/users/1/invalidate",
        "invalidate",
    ),
    ("POST", "/v1/tenants/TENANT/revocations", "revoke"),
    ("GET", "/v1/tenants/TENANT/connections", "list"),
    ("GET", "/v1/tenants/TENANT/groups/g", "list"),
    ("GET", "/v1/tenants/TENANT/users/1/connections", "list"),
    ("GET", "/v1/tenants/TENANT/groups/g/history", "list"),
    ("GET", "/v1/tenants/TENANT/groups/g/presence", "list"),
    ("GET", "/v1/tenants/TENANT/groups/g/presence/count", "list"),
    ("POST", "/v1/tenants/TENANT/users/1/groups/g", "groups"),
    ("DELETE", "/v1/tenants/TENANT/users/1/groups/g", "groups"),
    (
        "POST",
        "/v1/tenants/TENANT/connections/c/groups/g",
        "groups",
    ),
    (
        "DELETE",
        "/v1/tenants/TENANT/connections/c/groups/g",
        "groups",
    ),
    ("POST", "/v1/reload", "reload"),
];

/// Returns the confined keys as the configuration has them: each word alone, and all other words.
fn confined_keys() -> toml::Value {
    let words: std::collections::BTreeSet<&str> = SCOPES.iter().map(|(_, _, word)| *word).collect();
    let table = |key: String, scopes: Vec<&str>| {
        let scopes = scopes.into_iter().map(toml::Value::from).collect();
        let entries = [("key", key.into()), ("scopes", toml::Value::Array(scopes))];
        let entries = entries.map(|(name, value): (&str, toml::Value)| (name.to_owned(), value));
        toml::Value::Table(toml::Table::from_iter(entries))
    };
    let each = words.iter().flat_map(|word| {
        let others = words.iter().filter(|other| *other != word).copied();
        [
            table(key_of("only", word), vec![*word]),
            table(key_of("without", word), others.collect()),
        ]
    });
    toml::Value::Array(each.collect())
}

fn key_of(kind: &str, word: &str) -> String {
    format!("a-confined-key-for-tests-{kind}-{word}")
}

/// Every operator's key opened every call.
#[tokio::test]
async fn a_confined_key_opens_the_calls_of_its_scopes_alone() {
    // A reload that another test asks for reaches each replica on a Redis.
    let redis = crate::support::RedisServer::start().await;
    let gateway = gateway()
        .set("api.confined_keys", confined_keys())
        .redis(&redis.url())
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    for (method, path, word) in SCOPES {
        let path = path.replace("TENANT", &gateway.tenant().name);
        let refused = replica
            .api(&key_of("without", word), method, &path, "{}")
            .await;
        let problem = refused.json();
        assert_eq!(refused.status, 403, "{method} {path}: {refused:?}");
        assert_eq!(problem["code"], "scope_missing", "{method} {path}");
        assert_eq!(problem["scope"], word, "{method} {path}");
        let body = if method == "GET" { "" } else { "{}" };
        let taken = replica
            .api(&key_of("only", word), method, &path, body)
            .await;
        assert!(
            !matches!(taken.status, 401 | 403),
            "{method} {path}: {taken:?}"
        );
    }
    // What is described has the same scopes, and nothing is left out.
    let described = request(replica.api, "GET", "/openapi.json", &[], "")
        .await
        .json();
    let described = described["paths"].as_object().unwrap().values();
    let calls = described.flat_map(|item| item.as_object().unwrap().values());
    let mut scopes: Vec<_> = calls
        .map(|call| {
            call["security"][0]["api_key"][0]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let mut expected = SCOPES.map(|(_, _, word)| word.to_owned()).to_vec();
    scopes.sort();
    expected.sort();
    assert_eq!(scopes, expected);

    // A reload takes a scope away.
    crate::tenants::reload::change(&gateway, |table| {
        let api = table["api"].as_table_mut().unwrap();
        for key in api["confined_keys"].as_array_mut().unwrap() {
            let key = key.as_table_mut().unwrap();
            key.insert("scopes".into(), vec!["reload"].into());
        }
    });
    let key = key_of("only", "tenants:read");
    assert_eq!(
        replica.api(&key, "GET", "/v1/tenants", "").await.status,
        200
    );
    crate::tenants::reload::hang_up(&gateway, crate::tenants::reload::APPLIED).await;
    assert_eq!(
        replica.api(&key, "GET", "/v1/tenants", "").await.status,
        403
    );
}
