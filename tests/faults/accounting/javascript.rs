//! Clients of `clients/js` among the others: a Node process runs them, and tells what each got.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Log;
use super::ground::Ground;
use crate::support::process::{Process, Program, find_program};

/// The longest wait for the first positions, and for the logs.
const LONG: Duration = Duration::from_secs(120);

/// The process, with the number of its clients.
pub(crate) struct JsClients {
    process: Process,
    clients: usize,
}

impl JsClients {
    /// Starts them at these doors, spread over the groups, and waits until each has a position.
    pub(crate) async fn start(
        ground: &Ground,
        doors: &[String],
        groups: usize,
        clients: usize,
    ) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ws = root.join("clients/js/node_modules/ws");
        assert!(
            ws.exists(),
            "missing: {} - `tests/run deps` installs it",
            ws.display()
        );
        let script = root.join("tests/faults/accounting/javascript.mjs");
        let process = Program::new("node", find_program("node"))
            .args([script])
            .start();
        let about = json!({
            "host": ground.tenant.host, "tenant": ground.tenant.name, "token": ground.token(),
            "doors": doors, "groups": groups, "clients": clients,
        });
        process.write_line(&about.to_string());
        let ready = process.line("the first positions", LONG, |line| {
            (line == "ready").then_some(())
        });
        ready.await;
        Self { process, clients }
    }

    /// Waits until each has the last event of its group, and returns the logs.
    pub(crate) async fn end(self, truths: &[Vec<u64>]) -> Vec<Log> {
        let until: Vec<usize> = truths.iter().map(Vec::len).collect();
        self.process
            .write_line(&json!({"until": until}).to_string());
        let told = self.process.line("the logs", LONG, |line| {
            let told: Value = serde_json::from_str(line).ok()?;
            told.is_array().then_some(told)
        });
        let told = told.await;
        let logs: Vec<Log> = told.as_array().into_iter().flatten().map(log).collect();
        assert_eq!(logs.len(), self.clients, "each client is told of");
        logs
    }
}

fn log(told: &Value) -> Log {
    let number = |name: &str| told[name].as_u64();
    let seen = told["seen"].as_array().expect("the script tells it");
    assert!(
        told["closed"].is_null(),
        "a client that gave up: {}",
        told["closed"]
    );
    let group = number("group").and_then(|n| usize::try_from(n).ok());
    let mut log = Log::new(group.expect("the script tells it"), true);
    log.sockets = number("sockets").unwrap_or_default() as usize;
    let gaps = told["gaps"].as_array().expect("the script tells it");
    log.gaps = gaps.iter().map(Value::to_string).collect();
    log.first = number("first");
    log.seen = seen.iter().map(Value::as_u64).collect();
    log
}
