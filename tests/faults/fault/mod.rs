//! The faults, each with a beginning and an end.

mod clients;
mod cluster;
mod database;
mod machine;
mod redis;
mod replica;
mod wire;

use std::time::Duration;

pub(crate) use clients::ClientFault;
pub(crate) use cluster::ClusterFault;
pub(crate) use database::DatabaseFault;
pub(crate) use machine::MachineFault;
pub(crate) use redis::RedisFault;
pub(crate) use replica::ReplicaFault;
pub(crate) use wire::{Way, WireFault};

use crate::stage::Stage;

/// A fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing: the load alone.
    None,
    /// The Redis of `hurt`, or its settings.
    Redis(RedisFault),
    /// The Redis Cluster of `hurt`.
    Cluster(ClusterFault),
    /// A network.
    Wire(WireFault),
    /// The database of `hurt`.
    Database(DatabaseFault),
    /// A replica.
    Replica(ReplicaFault),
    /// Clients.
    Clients(ClientFault),
    /// What the machine gives to a replica.
    Machine(MachineFault),
}

impl Fault {
    /// Lets it begin; `lasts` is the time to its end.
    pub(crate) async fn begin(self, stage: &mut Stage, lasts: Duration) {
        match self {
            Self::None => {}
            Self::Redis(fault) => fault.begin(stage, lasts).await,
            Self::Cluster(fault) => fault.begin(stage).await,
            Self::Wire(fault) => fault.begin(stage),
            Self::Database(fault) => fault.begin(stage).await,
            Self::Replica(fault) => fault.begin(stage).await,
            Self::Clients(fault) => fault.begin(stage).await,
            Self::Machine(fault) => fault.begin(stage).await,
        }
    }

    /// Ends it, and returns once what it took away is back.
    pub(crate) async fn end(self, stage: &mut Stage) {
        match self {
            Self::Redis(fault) => fault.end(stage).await,
            Self::Cluster(fault) => fault.end(stage).await,
            Self::Wire(fault) => fault.end(stage).await,
            Self::Database(fault) => fault.end(stage).await,
            Self::None | Self::Clients(_) => {}
            Self::Replica(fault) => fault.end(stage).await,
            Self::Machine(fault) => fault.end(stage),
        }
        stage.kept.shutdown().await;
    }

    /// True if it steps clocks.
    pub(crate) fn needs_faketime(self) -> bool {
        matches!(
            self,
            Self::Machine(MachineFault::ClockStep(_) | MachineFault::ClocksApart)
        )
    }
}
