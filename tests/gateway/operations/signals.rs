//! Signals that come early.

use std::io::Write;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::Signal;

use crate::support::process::Program;
use crate::support::replica::LOCKGATE;
use crate::support::{PATIENCE, gateway};

/// The signal comes while the configuration is read. Before: each of the three ended the process there, in its first 40 ms.
#[tokio::test]
async fn a_signal_in_the_first_moments_is_obeyed_once_the_gateway_runs() {
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        let gateway = gateway()
            .set("server.drain.delay", "0s")
            .tenant("acme")
            .write()
            .await;
        // Reading it takes a moment, so that the signal falls into it.
        let mut config = std::fs::OpenOptions::new();
        let mut config = config.append(true).open(&gateway.config).unwrap();
        let comments = "# nothing\n".repeat(100_000);
        config.write_all(comments.as_bytes()).unwrap();
        let watch = inotify::init(CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, &gateway.config, WatchFlags::OPEN).unwrap();
        let process = Program::new("lockgate serve", LOCKGATE)
            .args([
                "serve".as_ref(),
                "--config".as_ref(),
                gateway.config.as_os_str(),
            ])
            .start();
        let opened = tokio::task::spawn_blocking(move || {
            let patience = Timespec::try_from(PATIENCE).unwrap();
            poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&patience)).unwrap()
        });
        assert_eq!(opened.await.unwrap(), 1, "the configuration is read");
        process.signal(signal);
        if signal == Signal::HUP {
            process
                .line("the reload", PATIENCE, |line| {
                    line.contains("Applied the configuration").then_some(())
                })
                .await;
        } else {
            let status = process.exited(PATIENCE).await;
            assert_eq!(
                status.code(),
                Some(0),
                "{signal:?}: {}",
                process.output.text()
            );
            assert!(process.output.text().contains("Drained"), "{signal:?}");
        }
    }
}
