//! The admin listener. It has its own thread, so that probes and scrapes are answered while the other threads are busy.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;

use super::http;
use crate::tasks::Alarm;

/// Interval of the recorder's upkeep. Histograms keep every sample until it runs, so it runs often.
const RECORDER_UPKEEP: Duration = Duration::from_secs(1);

/// Starts the thread, which serves `routes` to at most `most` connections at once. It runs until the process ends.
pub(super) fn start(
    listener: TcpListener,
    routes: Router,
    recorder: PrometheusHandle,
    most: usize,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start the admin listener")?;
    let serve = move || {
        let _alarm = Alarm::of("the admin listener");
        runtime.block_on(async move {
            let upkeep = async {
                loop {
                    tokio::time::sleep(RECORDER_UPKEEP).await;
                    recorder.run_upkeep();
                }
            };
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    never = http::serve(listener, routes, most) => match never {},
                    () = upkeep => {}
                },
                Err(error) => tracing::error!(error = %error, "The admin listener does not work"),
            }
        });
    };
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(serve)
        .context("cannot start the admin listener")?;
    Ok(())
}
