//! A Redis that refuses commands, as managed ones do: the table of docs/operations.md, a row for each set of commands.
//!
//! Each row is a tenant whose login lacks the commands by ACL.

use serde_json::{Value, json};

use crate::operations::doctor::{findings, is};
use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::http::Response;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway, token, unique};

pub(super) const CHAT: &str = "/ws/chat/lobby/";
/// A group with everything that a Redis can keep.
pub(super) const GROUPS: &str =
    "groups = [{ name = 'chat_<slug:room>', history = {}, presence = {} }]";

/// A login without some commands: its name, and the ACL rules that take them away.
pub(super) type Login = (&'static str, &'static [&'static str]);

const CONFIG: Login = ("config", &["-config"]);
const ROLE: Login = ("role", &["-role"]);
const INFO: Login = ("info", &["-info"]);
const ROLE_AND_INFO: Login = ("neither", &["-role", "-info"]);
const CLIENT: Login = ("client", &["-client"]);
const FUNCTION: Login = ("function", &["-function", "-fcall"]);
pub(super) const EVAL: Login = ("eval", &["-@scripting"]);
/// All that managed servers are known to hide at once.
const MANAGED: Login = (
    "managed",
    &["-@admin", "-@dangerous", "-client", "-function", "-role"],
);

/// A server with these logins.
pub(super) async fn server(logins: &[Login]) -> RedisServer {
    let redis = RedisServer::start().await;
    for (name, refused) in logins {
        let mut set = vec![
            "ACL", "SETUSER", name, "on", ">hunter2", "~*", "&*", "+@all",
        ];
        set.extend(*refused);
        let () = redis.command(&set).await;
    }
    redis
}

fn url(redis: &RedisServer, (name, _): Login) -> String {
    format!("redis://{name}:hunter2@{}/0", redis.endpoint())
}

/// A deployment of one tenant, whose Redis this is.
pub(super) fn with_login(redis: &RedisServer, login: Login) -> Builder {
    gateway()
        .redis(&url(redis, login))
        .set("server.ready_wait", "1s")
        .tenant(login.0)
}

pub(super) async fn api(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Response {
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let replica = gateway.replica();
    replica.api(&gateway.api_key, method, &path, &body).await
}

pub(super) async fn dial(gateway: &Gateway, jti: &str) -> Socket {
    let tenant = gateway.tenant();
    let mut claims = token::access(ALICE);
    claims["jti"] = jti.into();
    let dial = gateway.replica().dial(tenant, CHAT);
    dial.token(&tenant.sign(&claims)).open().await
}

/// A socket opens and is closed by the revocation of its token.
pub(super) async fn revokes_a_token(gateway: &Gateway) {
    let jti = unique();
    let mut socket = dial(gateway, &jti).await;
    let body = json!({"jti": jti, "exp": token::now() + 300});
    let answer = api(gateway, "POST", "revocations", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
}

/// The deployment does everything: events with a history, presence, revocations of each kind.
pub(super) async fn does_everything(gateway: &Gateway) {
    let mut socket = dial(gateway, &unique()).await;
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await["n"], 1);
    let kept = api(gateway, "GET", "groups/chat_lobby/history", &Value::Null).await;
    assert_eq!(
        kept.json()["events"].as_array().unwrap().len(),
        1,
        "{kept:?}"
    );
    eventually(PATIENCE, "the presence", async || {
        let count = "groups/chat_lobby/presence/count";
        let answer = api(gateway, "GET", count, &Value::Null).await;
        match answer.status == 200 && answer.json() == json!({"sockets": 1, "users": 1}) {
            true => Ok(()),
            false => Err(answer),
        }
    })
    .await;
    revokes_a_token(gateway).await;
    let user = json!({"user_id": ALICE, "issued_before": token::now() + 1});
    let answer = api(gateway, "POST", "revocations", &user).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
}

/// Both layers do everything although the login lacks these commands; the doctor has these verdicts, and `/readyz` names
/// nothing to mend.
async fn is_not_missed(login: Login, doctor: &[(&str, &str, &str)]) {
    let redis = server(&[login]).await;
    for kind in ["pubsub", "core"] {
        let builder = with_login(&redis, login).with("layer.kind", kind);
        let gateway = builder.with_toml(GROUPS).start().await;
        does_everything(&gateway).await;
        let found = findings(&gateway.config);
        let subject = format!("redis {}@{}/0", login.0, redis.endpoint());
        for (check, verdict, detail) in doctor {
            is(&found, (&subject, check), verdict, detail);
        }
        is(&found, (&subject, "scripts"), "ok", "they run");
        assert_eq!(found["ok"], true, "{found}");
        let seen = gateway.readyz().await;
        let (ready, warnings) = (&seen.json()["ready"], &seen.json()["warnings"]);
        assert_eq!((ready, warnings), (&json!(true), &json!({})), "{kind}");
        assert!(!gateway.output().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_refused_config_hides_what_a_restart_forgets() {
    let unknown = (
        "persistence",
        "note",
        "unknown: the login may not ask (CONFIG GET save)",
    );
    is_not_missed(CONFIG, &[unknown, ("role", "ok", "master")]).await;
}

#[tokio::test]
async fn a_refused_role_is_read_from_info_and_a_refused_info_from_role() {
    is_not_missed(ROLE, &[("role", "ok", "master"), ("version", "ok", ".")]).await;
    let unknown = "unknown: the login may not ask (INFO)";
    let doctor = [
        ("role", "ok", "master"),
        ("version", "note", unknown),
        ("eviction", "note", unknown),
    ];
    is_not_missed(INFO, &doctor).await;
}

#[tokio::test]
async fn a_role_that_no_command_tells_is_a_note() {
    let unknown = (
        "role",
        "note",
        "unknown: the login may not ask (INFO, ROLE)",
    );
    is_not_missed(ROLE_AND_INFO, &[unknown]).await;
}

#[tokio::test]
async fn a_refused_client_leaves_the_connections_without_names() {
    let named = ("named", [].as_slice());
    let redis = server(&[CLIENT, named]).await;
    let mut gateways = Vec::new();
    for login in [CLIENT, named] {
        let builder = with_login(&redis, login).with_toml(GROUPS);
        let gateway = builder.start().await;
        does_everything(&gateway).await;
        assert_eq!(gateway.readyz().await.json()["warnings"], json!({}));
        gateways.push(gateway);
    }
    let list: String = redis.command(&["CLIENT", "LIST"]).await;
    let names = |login: Login| {
        let user = format!(" user={} ", login.0);
        let of_user = list.lines().filter(move |line| line.contains(&user));
        of_user
            .map(|line| line.contains(" name=lockgate-"))
            .collect::<Vec<_>>()
    };
    let (without, with) = (names(CLIENT), names(named));
    assert!(!without.is_empty() && !without.contains(&true), "{list}");
    assert!(with.contains(&true), "{list}");
}

#[tokio::test]
async fn refused_functions_leave_back_ends_the_script() {
    is_not_missed(FUNCTION, &[]).await;
    let redis = server(&[FUNCTION]).await;
    let gateway = with_login(&redis, FUNCTION).with_toml(GROUPS).start().await;
    gateway
        .replica()
        .logged("back ends record by EVALSHA")
        .await;
    let rules: String = eventually(PATIENCE, "the rules for back ends", async || {
        let key = gateway.tenant().redis_key("groups");
        redis.ask(&["GET", &key]).await
    })
    .await;
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let digest = rules["record"].as_str().unwrap();
    let known: Vec<u8> = redis.command(&["SCRIPT", "EXISTS", digest]).await;
    assert_eq!(known, [1], "{rules}");
    let found = findings(&gateway.config);
    is(
        &found,
        ("redis function@", "function"),
        "note",
        "cannot be listed",
    );
}

#[tokio::test]
async fn all_that_managed_servers_hide_is_not_missed() {
    is_not_missed(MANAGED, &[("persistence", "note", "unknown")]).await;
}
