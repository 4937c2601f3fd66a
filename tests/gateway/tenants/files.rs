//! One file's mistake: it degrades the tenants that it concerns, and the reload of the others goes on.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use toml::Table;

use super::reload::{APPLIED, REFUSED, change, hang_up, tenant_table};
use crate::support::database::ALICE;
use crate::support::replica::Replica;
use crate::support::{Gateway, PATIENCE, RedisServer, Tenant, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";

/// Moves every tenant into a file of its own in `tenants.d`, and includes these.
fn split(gateway: &Gateway) {
    let folder = folder(gateway);
    std::fs::create_dir_all(&folder).unwrap();
    change(gateway, |table| {
        let Some(toml::Value::Table(tenants)) = table.remove("tenants") else {
            panic!("has tenants");
        };
        for (name, tenant) in tenants {
            write(&folder.join(format!("{name}.toml")), &name, &tenant);
        }
        table.insert("include".into(), vec!["tenants.d/*.toml"].into());
    });
}

fn folder(gateway: &Gateway) -> PathBuf {
    gateway.config.parent().unwrap().join("tenants.d")
}

fn file_of(gateway: &Gateway, word: &str) -> PathBuf {
    let name = &gateway.named(word).name;
    folder(gateway).join(format!("{name}.toml"))
}

/// Writes a file with one tenant.
fn write(path: &Path, name: &str, tenant: &toml::Value) {
    let tenants = Table::from_iter([(name.to_owned(), tenant.clone())]);
    let file = Table::from_iter([("tenants".to_owned(), toml::Value::Table(tenants))]);
    std::fs::write(path, file.to_string()).unwrap();
}

/// Returns the tenant's table of its file.
fn read(gateway: &Gateway, word: &str) -> toml::Value {
    let text = std::fs::read_to_string(file_of(gateway, word)).unwrap();
    let table: Table = text.parse().unwrap();
    table["tenants"][gateway.named(word).name.as_str()].clone()
}

/// Changes a tenant in its file.
fn edit(gateway: &Gateway, word: &str, key: &str, value: impl Into<toml::Value>) {
    let mut tenant = read(gateway, word);
    let table = tenant.as_table_mut().unwrap();
    table.insert(key.to_owned(), value.into());
    write(&file_of(gateway, word), &gateway.named(word).name, &tenant);
}

async fn reload(gateway: &Gateway) -> Value {
    let replica = gateway.replica();
    let answer = replica
        .api(&gateway.api_key, "POST", "/v1/reload", "{}")
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Waits until a reload reaches so many replicas: one that is ready need not hear the others yet.
async fn reloads_on(gateway: &Gateway, replicas: u64) {
    eventually(PATIENCE, "every replica reloads", async || {
        let answer = reload(gateway).await;
        match answer["applied"] == replicas {
            true => Ok(()),
            false => Err(answer),
        }
    })
    .await;
}

/// Expects that a reload is refused.
async fn reload_is_refused(gateway: &Gateway) {
    let replica = gateway.replica();
    let answer = replica
        .api(&gateway.api_key, "POST", "/v1/reload", "{}")
        .await;
    assert_eq!(answer.status, 422, "{answer:?}");
}

/// Returns the status of a handshake; 101 where it opens.
async fn status(replica: &Replica, tenant: &Tenant) -> u16 {
    let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    match dial.attempt().await {
        Ok(_) => 101,
        Err(refusal) => refusal.status,
    }
}

/// One wrong file refused the reload of all.
#[tokio::test]
async fn a_mistake_in_one_file_degrades_its_tenant_and_the_others_are_reloaded() {
    // Other tests' replicas would be counted on one Redis with them.
    let redis = RedisServer::start().await;
    let mut gateway = gateway()
        .redis(&redis.url())
        .tenant("wrong")
        .tenant("changed")
        .tenant("broken")
        .write()
        .await;
    split(&gateway);
    gateway.add_replica().await;
    gateway.add_replica().await;
    for replica in &gateway.replicas {
        replica.ready().await;
    }
    reloads_on(&gateway, 2).await;
    let replica = gateway.replica();
    let (wrong, changed, broken) = (
        gateway.named("wrong"),
        gateway.named("changed"),
        gateway.named("broken"),
    );
    let token = wrong.token(ALICE);
    let mut stays = replica.dial(wrong, CHAT).token(&token).open().await;

    edit(&gateway, "wrong", "hots", "x");
    edit(&gateway, "changed", "hosts", vec!["changed.example"]);
    let whole = read(&gateway, "broken");
    std::fs::write(file_of(&gateway, "broken"), "[tenants.").unwrap();
    let answer = reload(&gateway).await;
    assert_eq!(answer["applied"], 2, "{answer}");
    let degraded = answer["degraded"].as_array().unwrap();
    let tenants: Vec<_> = degraded.iter().map(|one| &one["tenant"]).collect();
    assert_eq!(
        tenants,
        [&json!(broken.name), &json!(wrong.name), &Value::Null]
    );
    for one in degraded.iter().take(2) {
        assert_eq!(one["last_good"], true, "{one}");
    }
    let reason = degraded[1]["reason"].as_str().unwrap();
    assert!(reason.contains("hots: found an unknown key"), "{reason}");
    assert_eq!(
        answer["degraded_on"].as_array().unwrap().len(),
        1,
        "{answer}"
    );

    // The last good configuration of both is served, and the change of the third.
    assert!(stays.ping().await.is_empty());
    assert_eq!(status(replica, wrong).await, 101);
    assert_eq!(status(replica, broken).await, 101);
    assert_eq!(status(replica, changed).await, 404, "its host is another");
    let list = replica
        .api(&gateway.api_key, "GET", "/v1/tenants", "")
        .await;
    let list = list.json();
    let of = |tenant: &Tenant| {
        let mut all = list["tenants"].as_array().unwrap().iter();
        all.find(|one| one["name"] == json!(tenant.name)).unwrap()
    };
    assert_eq!(of(wrong)["degraded"], true, "{list}");
    assert_eq!(of(changed)["degraded"], false, "{list}");
    replica
        .metric(
            "lockgate_config_degraded",
            &[("tenant", &wrong.name)],
            |n| n == 1.0,
        )
        .await;

    // A replica that starts now has no good configuration of them, and answers 503.
    gateway.add_replica().await;
    let late = gateway.replicas.last().unwrap();
    late.ready().await;
    assert_eq!(status(late, gateway.named("wrong")).await, 503);
    // The hosts of a file that cannot be read are not known.
    assert_eq!(status(late, gateway.named("broken")).await, 503);
    // So are its keys of the API; it was 401.
    let unknown = "a key of the API that may be that of the file's tenant";
    let answer = late
        .api(unknown, "GET", "/v1/tenants/x/connections", "")
        .await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let readiness = late.readyz().await.json();
    assert_eq!(readiness["degraded"], 2, "{readiness}");

    // What is mended is served as it stands.
    reloads_on(&gateway, 3).await;
    write(
        &file_of(&gateway, "broken"),
        &gateway.named("broken").name,
        &whole,
    );
    let mut mended = read(&gateway, "wrong");
    mended.as_table_mut().unwrap().remove("hots");
    write(
        &file_of(&gateway, "wrong"),
        &gateway.named("wrong").name,
        &mended,
    );
    let answer = reload(&gateway).await;
    assert_eq!(answer["degraded"], json!([]), "{answer}");
    assert_eq!(answer["degraded_on"], json!([]), "{answer}");
    let late = gateway.replicas.last().unwrap();
    assert_eq!(status(late, gateway.named("wrong")).await, 101);
    assert_eq!(status(late, gateway.named("broken")).await, 101);
    gateway
        .replica()
        .metric(
            "lockgate_config_degraded",
            &[("tenant", &gateway.named("wrong").name)],
            |n| n == 0.0,
        )
        .await;
    assert!(stays.ping().await.is_empty());
}

/// A new file could take the name, the host or the prefix of a tenant that was served, where its own name came first.
#[tokio::test]
async fn a_newcomer_takes_nothing_from_a_tenant_that_is_there() {
    let mut gateway = gateway().tenant("there").write().await;
    split(&gateway);
    gateway.add_replica().await;
    let replica = gateway.replica();
    replica.ready().await;
    let there = gateway.tenant();
    let token = there.token(ALICE);
    let mut socket = replica.dial(there, CHAT).token(&token).open().await;
    let newcomer = |change: &[(&str, toml::Value)]| {
        let mut tenant = read(&gateway, "there");
        for (key, value) in change {
            tenant
                .as_table_mut()
                .unwrap()
                .insert((*key).to_owned(), value.clone());
        }
        tenant
    };
    let layer: Table = "kind = 'pubsub'\nprefix = 'elsewhere'".parse().unwrap();
    let prefix = newcomer(&[("hosts", vec!["aaa-prefix.example"].into())]);
    let host = newcomer(&[("layer", layer.clone().into())]);
    let name = newcomer(&[
        ("hosts", vec!["aaa-name.example"].into()),
        ("layer", layer.into()),
    ]);
    let file = |file: &str| folder(&gateway).join(file);
    write(&file("aaa-prefix.toml"), "aaa-prefix", &prefix);
    write(&file("aaa-host.toml"), "aaa-host", &host);
    write(&file("aaa-name.toml"), &there.name, &name);
    let answer = reload(&gateway).await;
    let degraded = answer["degraded"].as_array().unwrap();
    let of = |one: &Value, member: &str| one[member].as_str().unwrap_or_default().to_owned();
    let tenants: Vec<_> = degraded.iter().map(|one| of(one, "tenant")).collect();
    assert_eq!(tenants, ["aaa-host", "aaa-prefix", ""], "{answer}");
    let reason = |index: usize| of(&degraded[index], "reason");
    assert!(reason(0).contains("which tenant"), "{answer}");
    assert!(reason(1).contains("layer.prefix"), "{answer}");
    assert!(reason(2).contains("the tenant a second time"), "{answer}");
    assert!(
        of(&degraded[2], "file").ends_with("aaa-name.toml"),
        "{answer}"
    );
    assert!(socket.ping().await.is_empty());
    assert_eq!(status(replica, there).await, 101);

    // Nor while its own file cannot be read.
    std::fs::write(file_of(&gateway, "there"), "[tenants.").unwrap();
    let answer = reload(&gateway).await;
    let text = answer.to_string();
    assert!(text.contains("which cannot be read"), "{answer}");
    assert!(socket.ping().await.is_empty());
    assert_eq!(status(replica, there).await, 101);
}

/// A folder that was not mounted for a moment closed every socket, and a change of the main file those of a tenant that it left no
/// place.
#[tokio::test]
async fn a_reload_that_would_lose_a_served_tenant_is_refused() {
    let mut gateway = gateway().tenant("there").write().await;
    split(&gateway);
    gateway.add_replica().await;
    let replica = gateway.replica();
    replica.ready().await;
    let there = gateway.tenant();
    let token = there.token(ALICE);
    let mut socket = replica.dial(there, CHAT).token(&token).open().await;
    let mut tenant = read(&gateway, "there");

    std::fs::remove_file(file_of(&gateway, "there")).unwrap();
    reload_is_refused(&gateway).await;
    assert!(socket.ping().await.is_empty());
    assert_eq!(status(replica, there).await, 101);
    write(&file_of(&gateway, "there"), &there.name, &tenant);

    // The main file takes its host.
    let layer: Table = "kind = 'pubsub'\nprefix = 'elsewhere'".parse().unwrap();
    let rival = tenant.as_table_mut().unwrap();
    rival.insert("layer".into(), layer.into());
    change(&gateway, |table| {
        let tenants = Table::from_iter([("rival".to_owned(), tenant)]);
        table.insert("tenants".into(), tenants.into());
    });
    reload_is_refused(&gateway).await;
    replica.logged("nor can its last good configuration").await;
    assert!(socket.ping().await.is_empty());
    assert_eq!(status(replica, there).await, 101);
}

/// Its sockets closed, as if it had never been served.
#[tokio::test]
async fn a_tenant_that_moves_into_a_wrong_file_keeps_its_last_good_configuration() {
    let gateway = gateway().tenant("moves").tenant("stays").start().await;
    let replica = gateway.replica();
    let moves = gateway.named("moves");
    let token = moves.token(ALICE);
    let mut socket = replica.dial(moves, CHAT).token(&token).open().await;
    std::fs::create_dir_all(folder(&gateway)).unwrap();
    change(&gateway, |table| {
        tenant_table(table, moves).insert("hots".into(), "x".into());
        let tenants = table["tenants"].as_table_mut().unwrap();
        let tenant = tenants.remove(&moves.name).unwrap();
        write(&file_of(&gateway, "moves"), &moves.name, &tenant);
        table.insert("include".into(), vec!["tenants.d/*.toml"].into());
    });
    let answer = reload(&gateway).await;
    assert_eq!(answer["degraded"][0]["last_good"], true, "{answer}");
    assert!(socket.ping().await.is_empty());
    assert_eq!(status(replica, moves).await, 101);
}

#[tokio::test]
async fn with_strict_one_mistake_refuses_the_reload_of_all() {
    let mut gateway = gateway().tenant("acme").tenant("other").write().await;
    split(&gateway);
    let program = Replica::program(&gateway.config).args(["--strict"]);
    let replica = Replica::run(program).await;
    gateway.replicas.push(replica);
    gateway.replica().ready().await;
    edit(&gateway, "acme", "hots", "x");
    edit(&gateway, "other", "hosts", vec!["other.example"]);
    hang_up(&gateway, REFUSED).await;
    assert_eq!(status(gateway.replica(), gateway.named("other")).await, 101);
    // The main file's mistakes refuse the reload in any case.
    let mut tenant = read(&gateway, "acme");
    tenant.as_table_mut().unwrap().remove("hots");
    write(
        &file_of(&gateway, "acme"),
        &gateway.named("acme").name,
        &tenant,
    );
    hang_up(&gateway, APPLIED).await;
    assert_eq!(status(gateway.replica(), gateway.named("other")).await, 404);
}

/// A changed file was seen within three seconds, beside however many others.
#[tokio::test]
async fn a_watched_file_of_many_is_live_soon() {
    let mut gateway = gateway().set("watch", true).tenant("acme").write().await;
    split(&gateway);
    gateway.add_replica().await;
    let replica = gateway.replica();
    replica.ready().await;
    edit(&gateway, "acme", "hots", "x");
    replica.logged("hots: found an unknown key").await;
    let mut tenant = read(&gateway, "acme");
    let table = tenant.as_table_mut().unwrap();
    table.remove("hots");
    table.insert("hosts".into(), vec!["acme.example"].into());
    write(&file_of(&gateway, "acme"), &gateway.tenant().name, &tenant);
    eventually(PATIENCE, "the host is another", async || {
        match status(replica, gateway.tenant()).await {
            404 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
