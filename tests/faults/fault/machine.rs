//! Faults of what a machine gives: descriptors, a reader of the log, clocks, a scraper with manners.

use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::stage::{Stage, clock_file, set_clock};
use crate::support::http::try_request;
use crate::support::process::Reader;

/// What a machine does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MachineFault {
    /// The first replica may open no further descriptor.
    NoDescriptors,
    /// Nothing reads the log of the first replica.
    LogPaused,
    /// The log of the first replica is closed.
    LogClosed,
    /// Many scrapes at once, again and again, and some that never read their answer.
    Scrapes,
    /// The clocks of both replicas step so many seconds, and back at the end.
    ClockStep(i64),
    /// The clocks of the replicas differ all the time.
    ClocksApart,
}

impl MachineFault {
    pub(super) async fn begin(self, stage: &mut Stage) {
        let first = &stage.gateway.replicas[0];
        match self {
            Self::NoDescriptors => {
                // Below all that are open: what it has stays, and nothing comes.
                limit_descriptors(first.process.pid, "16:");
            }
            Self::LogPaused => first.process.output.set_reader(Reader::Paused),
            Self::LogClosed => first.process.output.set_reader(Reader::Gone),
            Self::Scrapes => scrape(stage).await,
            Self::ClockStep(seconds) => set_clock(&clock_file(&stage.gateway), seconds),
            Self::ClocksApart => {}
        }
    }

    pub(super) fn end(self, stage: &mut Stage) {
        let first = &stage.gateway.replicas[0];
        match self {
            // Far more than a row opens; the hard limit stayed.
            Self::NoDescriptors => limit_descriptors(first.process.pid, "4096:"),
            Self::LogPaused => first.process.output.set_reader(Reader::Reading),
            Self::ClockStep(_) => set_clock(&clock_file(&stage.gateway), 0),
            Self::LogClosed | Self::Scrapes | Self::ClocksApart => {}
        }
    }
}

/// Sets the soft limit of a process that runs.
fn limit_descriptors(process: Pid, limit: &str) {
    let done = Command::new("prlimit")
        .args([
            "--pid",
            &process.as_raw_nonzero().to_string(),
            &format!("--nofile={limit}"),
        ])
        .status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "prlimit sets a limit"
    );
}

async fn scrape(stage: &mut Stage) {
    let admin = stage.gateway.replicas[0].admin;
    for _ in 0..20 {
        if let Ok(mut stream) = TcpStream::connect(admin).await {
            let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            drop(asked.await);
            stage.kept.spawn(async move {
                let _stream = stream;
                std::future::pending::<()>().await;
            });
        }
    }
    for _ in 0..100 {
        stage.kept.spawn(async move {
            loop {
                drop(try_request(admin, "GET", "/metrics", &[], "").await);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
}
