//! Faults of replicas: they are ended, killed, frozen, and replaced.

use std::time::Duration;

use rustix::process::Signal;

use crate::stage::Stage;

/// The longest wait for the end of a replica that drains.
const DRAINED: Duration = Duration::from_secs(90);

/// What happens to a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ReplicaFault {
    /// SIGTERM to the first; it drains, and another takes its place.
    Drains,
    /// A second SIGTERM follows while it drains.
    DrainIsCut,
    /// `kill -9` of the first; another takes its place at the end.
    Killed,
    /// SIGSTOP of the first until the end.
    Frozen,
    /// Both are drained and replaced, one after the other.
    Rolls,
}

impl ReplicaFault {
    pub(super) async fn begin(self, stage: &mut Stage) {
        let first = &mut stage.gateway.replicas[0];
        match self {
            Self::Drains | Self::DrainIsCut => first.terminate(),
            Self::Killed => first.process.kill(),
            Self::Frozen => first.process.signal(Signal::STOP),
            Self::Rolls => {
                for replica in 0..2 {
                    stage.gateway.replicas[replica].terminate();
                    let ended = stage.gateway.replicas[replica].exited(DRAINED).await;
                    assert_eq!(ended.code(), Some(0), "a drain that was met");
                    stage.replace(replica).await;
                }
            }
        }
    }

    pub(super) async fn end(self, stage: &mut Stage) {
        let first = &mut stage.gateway.replicas[0];
        match self {
            Self::Drains => {
                let ended = first.exited(DRAINED).await;
                assert_eq!(ended.code(), Some(0), "a drain that was met");
                stage.replace(0).await;
            }
            Self::DrainIsCut => {
                first.terminate();
                let ended = first.exited(Duration::from_secs(5)).await;
                assert_eq!(ended.code(), Some(1), "a drain that was cut short");
                stage.replace(0).await;
            }
            Self::Killed => stage.replace(0).await,
            Self::Frozen => first.process.signal(Signal::CONT),
            Self::Rolls => {}
        }
    }
}
