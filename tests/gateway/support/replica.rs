//! One running gateway process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::http::{Response, request};
use super::metrics::Metrics;
use super::process::{Process, Program};
use super::socket::Dial;
use super::tenant::Tenant;
use super::{PATIENCE, eventually};

/// The binary under test.
pub(crate) const LOCKGATE: &str = env!("CARGO_BIN_EXE_lockgate");

/// A process of `lockgate serve`; killed when this goes.
pub(crate) struct Replica {
    /// The process with all that it logged.
    pub(crate) process: Process,
    /// The address for sockets.
    pub(crate) server: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub(crate) admin: SocketAddr,
    /// `/v1`.
    pub(crate) api: SocketAddr,
}

impl Replica {
    /// Starts it and waits until it says where it listens.
    pub(crate) async fn start(config: &Path) -> Self {
        Self::run(Self::program(config)).await
    }

    /// The program, for a test that changes its environment.
    pub(crate) fn program(config: &Path) -> Program {
        Self::program_of(LOCKGATE.as_ref(), config)
    }

    /// As `program`, with another binary.
    pub(crate) fn program_of(binary: &Path, config: &Path) -> Program {
        Program::new("lockgate serve", binary).args([
            "serve".as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
        ])
    }

    /// As `start`, with a program of the test's own.
    pub(crate) async fn run(program: Program) -> Self {
        let process = program.start();
        let [server, admin, api] = process
            .line("the line with its addresses", PATIENCE, |line| {
                let line: Value = serde_json::from_str(line).ok()?;
                let fields = line.get("fields").unwrap_or(&line);
                (fields["message"] == "listening").then(|| {
                    ["server.listen", "admin.listen", "api.listen"]
                        .map(|name| fields[name].as_str().and_then(|text| text.parse().ok()))
                })
            })
            .await
            .map(|address| address.expect("an address in each of the three fields"));
        Self {
            process,
            server,
            admin,
            api,
        }
    }

    /// Waits until `/readyz` answers 200.
    pub(crate) async fn ready(&self) {
        eventually(PATIENCE, "/readyz", async || {
            let answer = self.readyz().await;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(answer)
            }
        })
        .await;
    }

    /// `/readyz` now.
    pub(crate) async fn readyz(&self) -> Response {
        request(self.admin, "GET", "/readyz", &[], "").await
    }

    /// A scrape.
    pub(crate) async fn metrics(&self) -> Metrics {
        let answer = request(self.admin, "GET", "/metrics", &[], "").await;
        Metrics::parse(&answer.body)
    }

    /// Waits until the sum of a metric's samples with these labels is as `enough` wants it.
    pub(crate) async fn metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        enough: impl Fn(f64) -> bool,
    ) -> f64 {
        eventually(PATIENCE, &format!("{name} {labels:?}"), async || {
            let value = self.metrics().await.value(name, labels);
            if enough(value) { Ok(value) } else { Err(value) }
        })
        .await
    }

    /// An upgrade request to a tenant, without a token so far.
    pub(crate) fn dial(&self, tenant: &Tenant, path: &str) -> Dial {
        Dial::new(self.server, &tenant.host, path)
    }

    /// A call of the management API with this key.
    pub(crate) async fn api(&self, key: &str, method: &str, path: &str, body: &str) -> Response {
        let bearer = format!("Bearer {key}");
        request(self.api, method, path, &[("Authorization", &bearer)], body).await
    }

    /// Waits for a line of its log.
    pub(crate) async fn logged(&self, what: &str) -> String {
        self.process
            .line(what, PATIENCE, |line| {
                line.contains(what).then(|| line.to_owned())
            })
            .await
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for its end.
    pub(crate) async fn exited(&self, deadline: Duration) -> ExitStatus {
        self.process.exited(deadline).await
    }
}
