//! User ids that are SQL, Redis commands or paths, in tokens, API calls and path parameters. Each is taken as text only, and
//! a healthy socket receives an event after each.

use serde_json::{Value, json};

use super::values::Healthy;
use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::{Database, Gateway, RedisServer, gateway, token};

const HOSTILE: [&str; 16] = [
    "' OR '1'='1",
    "alice' --",
    "alice'; DROP TABLE auth_user; --",
    "alice\"; DELETE FROM auth_user; --",
    "1) OR (1=1",
    "$1",
    ":user_ids",
    "{alice,bob}",
    "alice\0",
    "\u{1f600}",
    "\u{202e}ecila",
    "*",
    "1\r\nSET lockgate:x y",
    "../../1",
    "alice:extra",
    "alice ",
];

/// Users are known by their names; the name `alice` is the first tenant's alice.
async fn by_name(database: &Database) -> Gateway {
    gateway()
        .tenant("acme")
        .users(database)
        .with("users.id_type", "text")
        .with(
            "users.query",
            "SELECT username AS id, is_active FROM auth_user WHERE username IN (:user_ids)",
        )
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']")
        .route(
            "path = 'ws/named/<path:name>/'\n groups = ['named']\n \
             authorize = 'SELECT 1 FROM auth_user WHERE username = :user_id AND username = :name'",
        )
        .start()
        .await
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

async fn each_is_text_and_nothing_else(database: Database) {
    // The healthy socket is that of a user whose id is that of alice elsewhere.
    let rename = format!("UPDATE auth_user SET username = '{ALICE}' WHERE id = {BOB}");
    database.execute(&rename).await;
    let gateway = by_name(&database).await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::open(&gateway).await;
    let alice = token::access("alice");
    let alice = tenant.sign(&alice);
    let open = async || {
        let dial = replica.dial(tenant, "/ws/named/alice/");
        dial.token(&alice).open().await
    };
    let mut named = open().await;
    for id in HOSTILE {
        // As a token's user.
        let dial = replica
            .dial(tenant, "/ws/chat/den/")
            .token(&tenant.token(id));
        let problem = match id.contains('\0') {
            // No database that is spoken to here holds it in a text.
            true => Problem::token("user_id"),
            false => Problem::new(401, "user_not_found"),
        };
        println!("{id:?}");
        problem.is(&dial.refused().await, &tenant.name);
        // As a parameter of a statement.
        let path = format!("/ws/named/{}/", encoded(id));
        let refusal = replica.dial(tenant, &path).token(&alice).refused().await;
        let word = refusal.json()["code"].clone();
        let known = [json!("group_forbidden"), json!("route_not_found")];
        assert!(known.contains(&word), "{id:?}: {refusal:?}");
        // As a user of calls.
        let call = async |call: &str, body: &Value| {
            let path = format!("/v1/tenants/{}/users/{}/{call}", tenant.name, encoded(id));
            let body = body.to_string();
            replica.api(&gateway.api_key, "POST", &path, &body).await
        };
        let path = format!("/v1/tenants/{}/revocations", tenant.name);
        let body = json!({"user_id": id}).to_string();
        for (answer, nothing) in [
            (call("send", &json!({"type": "x"})).await, "delivered"),
            (call("disconnect", &json!({})).await, "closed"),
            (call("invalidate", &json!({})).await, "closed"),
            (
                replica.api(&gateway.api_key, "POST", &path, &body).await,
                "closed",
            ),
        ] {
            match id.contains('\0') {
                true => assert_eq!(answer.json()["code"], "user_id_not_valid", "{answer:?}"),
                false => assert_eq!(answer.json()[nothing], 0, "{id:?}: {answer:?}"),
            }
        }
        healthy.hears(id).await;
    }
    assert!(named.ping().await.is_empty());
    open().await;
    // Every revocation stands under the id as it was written, and under nothing else.
    let keys: Vec<Vec<u8>> = RedisServer::shared()
        .await
        .command(&["KEYS", &tenant.redis_key("deny:*")])
        .await;
    let mut found: Vec<_> = keys
        .iter()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    let ids = HOSTILE.into_iter().filter(|id| !id.contains('\0'));
    let mut expected: Vec<_> = ids
        .map(|id| tenant.redis_key(&format!("deny:user:{id}")))
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn no_id_is_more_than_text_on_postgres() {
    each_is_text_and_nothing_else(Database::postgres().await).await;
}

#[tokio::test]
async fn no_id_is_more_than_text_on_sqlite() {
    each_is_text_and_nothing_else(Database::sqlite().await).await;
}
