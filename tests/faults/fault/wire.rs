//! Faults of networks: our proxies cut, clog, delay and split.

use std::sync::Arc;
use std::time::Duration;

use crate::field::HURT;
use crate::stage::Stage;
use crate::support::proxy::{Line, Proxy};

/// A way between two ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Of both replicas to the Redis of `hurt`.
    Redis,
    /// Of the first replica alone.
    FirstToRedis,
    /// Of both replicas to the database of `hurt`.
    Database,
    /// Of `hurt`'s clients to both replicas.
    Clients,
}

/// A network that fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WireFault {
    /// A line is as it says.
    Is(Way, Line),
    /// A line is cut and mended again and again.
    Flaps(Way),
}

/// The time between a cut and its mending.
const FLAP: Duration = Duration::from_millis(150);

fn proxies(stage: &Stage, way: Way) -> Vec<&Proxy> {
    let to_redis = stage.stores.lines.iter();
    match way {
        Way::Redis => to_redis.flatten().collect(),
        Way::FirstToRedis => to_redis.map(|lines| &lines[0]).collect(),
        Way::Database => stage.sql.iter().map(|sql| &sql.line).collect(),
        Way::Clients => stage.fronts[HURT].iter().collect(),
    }
}

impl WireFault {
    pub(super) fn begin(self, stage: &mut Stage) {
        match self {
            Self::Is(way, line) => set(&proxies(stage, way), line),
            Self::Flaps(way) => {
                let switches = proxies(stage, way).into_iter();
                let switches: Vec<_> = switches.map(|proxy| Arc::clone(&proxy.line)).collect();
                stage.kept.spawn(async move {
                    let mut tick = tokio::time::interval(FLAP);
                    for line in [Line::Reset, Line::Open].into_iter().cycle() {
                        tick.tick().await;
                        for switch in &switches {
                            switch.send_replace(line);
                        }
                    }
                });
            }
        }
    }

    pub(super) async fn end(self, stage: &mut Stage) {
        // Before the last word on the line.
        stage.kept.shutdown().await;
        let (Self::Is(way, _) | Self::Flaps(way)) = self;
        set(&proxies(stage, way), Line::Open);
    }
}

fn set(proxies: &[&Proxy], line: Line) {
    for proxy in proxies {
        proxy.set(line);
    }
}
