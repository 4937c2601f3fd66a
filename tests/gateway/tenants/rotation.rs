//! Another signing key, as `docs/rotating-keys.md` has it: tokens of both keys open sockets for a time, and no socket closes.

use std::time::Duration;

use toml::Table;

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::jwks::{Jwks, KID, NEXT_KID};
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, eventually, gateway, token};

use super::reload::{APPLIED, change, hang_up, tenant_table};

const CHAT: &str = "/ws/chat/lobby/";
const PAGE: &str = include_str!("../../../docs/rotating-keys.md");

async fn open(gateway: &Gateway, replica: usize, token: &str) -> Socket {
    let dial = gateway.replicas[replica].dial(gateway.tenant(), CHAT);
    dial.token(token).open().await
}

async fn is_refused(gateway: &Gateway, replica: usize, token: &str) {
    let dial = gateway.replicas[replica].dial(gateway.tenant(), CHAT);
    let refused = dial.token(token).refused().await;
    Problem::token("signature").is(&refused, &gateway.tenant().name);
}

/// Applies the page's block number `step`.
async fn apply(gateway: &Gateway, step: usize) {
    let blocks = PAGE.split("```toml\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("```").next());
    let block = blocks.nth(step).expect("the page shows each step");
    let shown: Table = block.parse().unwrap();
    let shown = shown["tenants"]["acme"]["token"].clone();
    change(gateway, |table| {
        let tenant = tenant_table(table, gateway.tenant());
        tenant.insert("token".to_owned(), shown);
    });
    hang_up(gateway, APPLIED).await;
}

/// With tokens that simplejwt signs, before, during and after.
#[tokio::test]
async fn an_hmac_key_is_rotated_with_overlap_and_no_socket_closes() {
    let database = Database::postgres().await;
    let gateway = gateway().tenant("acme").users(&database).start().await;
    let next = "the next signing key, also only for tests";
    let keys = [gateway.tenant().key.as_str(), next];
    let folder = gateway.config.parent().unwrap();
    let mut django = Vec::new();
    for (key, file) in keys.into_iter().zip(["signing-key", "signing-key-new"]) {
        std::fs::write(folder.join(file), key).unwrap();
        django.push(Django::at(database.url()).signing_key(key).start().await);
    }
    let old = django[0].access_token("alice").await;
    let new = django[1].access_token("alice").await;

    let mut before = open(&gateway, 0, &old).await;
    is_refused(&gateway, 0, &new).await;

    apply(&gateway, 0).await;
    let mut with_old = open(&gateway, 0, &old).await;
    let mut with_new = open(&gateway, 0, &new).await;

    apply(&gateway, 1).await;
    is_refused(&gateway, 0, &old).await;
    open(&gateway, 0, &new).await;
    // Sockets of tokens that the old key had signed live until those expire.
    for socket in [&mut before, &mut with_old, &mut with_new] {
        assert!(socket.ping().await.is_empty());
    }
}

/// The provider publishes the next key first, signs with it later, and takes the old one out last.
#[tokio::test]
async fn a_key_set_is_rotated_without_a_change_at_the_gateway() {
    let provider = Jwks::start().await;
    provider.publish(&[KID]);
    let mut gateway = gateway()
        .tenant("acme")
        .with("token.algorithm", "RS256")
        .with("token.jwk_url", provider.url.as_str())
        .start()
        .await;
    let old = provider.sign(&token::access(ALICE));
    let new = provider.sign_with_next(&token::access(ALICE));
    let mut before = open(&gateway, 0, &old).await;

    provider.publish(&[KID, NEXT_KID]);
    // A replica that starts has the set of now. The other one asks for a key that it does not know, though not at once after
    // its last fetch.
    gateway.add_replica().await;
    gateway.replicas[1].ready().await;
    let mut during = open(&gateway, 1, &old).await;
    let mut next = open(&gateway, 1, &new).await;
    eventually(Duration::from_secs(40), "the next key", async || {
        let dial = gateway.replicas[0].dial(gateway.tenant(), CHAT);
        dial.token(&new).attempt().await.map(drop)
    })
    .await;

    provider.publish(&[NEXT_KID]);
    gateway.add_replica().await;
    gateway.replicas[2].ready().await;
    let dial = gateway.replicas[2].dial(gateway.tenant(), CHAT);
    let refused = dial.token(&old).refused().await;
    Problem::token("key").is(&refused, &gateway.tenant().name);
    open(&gateway, 2, &new).await;
    for socket in [&mut before, &mut during, &mut next] {
        assert!(socket.ping().await.is_empty());
    }
}
