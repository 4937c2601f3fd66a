//! A task that the process cannot do without ends it when it panics.

use std::time::Duration;

use lockgate::server::{Options, Server, Signals};
use lockgate::{Config, LoadOptions, tasks};

/// Before: a link to Redis that panicked was gone, and nothing noticed; now every task that lasts is started by `lasting`.
///
/// The only gateway of this process, since a process installs metrics once.
#[tokio::test]
async fn the_panic_of_a_task_that_lasts_stops_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lockgate.toml");
    let config = format!(
        "[server]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n\
         [tenants.acme.token]\nalgorithm = 'HS256'\nsigning_key = 'a key for this test, and for nothing else'\n\
         [tenants.acme.users]\ndatabase = 'sqlite://{}?mode=rwc'\n[[tenants.acme.routes]]\npath = 'ws/'\n",
        dir.path().join("db").display()
    );
    std::fs::write(&path, config).unwrap();
    let loaded = Config::load(Some(&path), &LoadOptions::default()).unwrap();
    let server = Server::start(loaded.config, Options::default());
    let running = server.await.unwrap().run(Signals::new().unwrap());
    let mut running = std::pin::pin!(running);
    tasks::brief(async { panic!("the end of a small job") });
    let on = tokio::time::timeout(Duration::from_millis(200), &mut running).await;
    assert!(on.is_err(), "{:?}", on.map(|ended| ended.is_ok()));
    let _task = tasks::lasting("a link to Redis", async { panic!("as a bug would") });
    let ended = tokio::time::timeout(Duration::from_secs(15), running).await;
    let error = ended.unwrap().unwrap_err();
    assert_eq!(format!("{error:#}"), "a link to Redis failed");
}
