//! Sending over the link: waiting for it, sending again after it was lost, and telling that it leads to a replica.

use std::future::Future;
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::time::timeout;

use super::RedisStore;
use crate::error::StoreError;
use crate::stores::misfit::{is_of_cluster, of_cluster_node};
use crate::stores::redis_link::{ANSWER_LIMIT, LinkState, store_error};
use crate::stores::redis_role::is_demotion;

impl RedisStore {
    /// Sends a command, and once more if the link was lost or led to a replica. For commands that may act twice.
    pub(super) async fn ask_again<T, F: Future<Output = RedisResult<T>>>(
        &self,
        operation: &'static str,
        send: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, StoreError> {
        match self.ask(operation, &send).await {
            Err((_, true)) => self.ask(operation, &send).await.map_err(|(error, _)| error),
            Err((error, false)) => Err(error),
            Ok(answer) => Ok(answer),
        }
    }

    /// Sends a command and returns its answer, or the error with true if the link was lost or led to a replica.
    pub(super) async fn ask<T, F: Future<Output = RedisResult<T>>>(
        &self,
        operation: &'static str,
        send: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, (StoreError, bool)> {
        let (connection, link) = self.connection().await.map_err(|error| (error, false))?;
        let started = Instant::now();
        let answer = send(connection).await;
        match answer {
            Ok(answer) => {
                self.shared.heard();
                self.times.took(operation, started.elapsed());
                Ok(answer)
            }
            Err(error) => {
                let lost = error.is_unrecoverable_error();
                // The master has become a replica. The next link leads to the new master.
                let demoted = !self.any_role && is_demotion(&error);
                if demoted {
                    self.shared.report_demoted(link);
                } else if lost {
                    self.shared.report_broken(link);
                }
                let error = store_error(self.dependency, self.explained(error));
                let error = self.failed(error);
                Err((error, lost || demoted))
            }
        }
    }

    /// Returns the error with the action to take, if the URL is that of one server and its server is a node of a cluster.
    pub(super) fn explained(&self, error: RedisError) -> RedisError {
        // The commands to the nodes of a cluster follow such answers.
        match !self.is_node && !self.is_cluster() && is_of_cluster(&error) {
            true => of_cluster_node(&error),
            false => error,
        }
    }

    /// Returns the link and its number. It waits for a link that was lost just now, but not for one that has been down for
    /// longer than [`ANSWER_LIMIT`].
    pub(super) async fn connection(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        self.keep_connected();
        if let LinkState::Up(connection, link) = &*self.shared.state.borrow() {
            return Ok((connection.clone(), *link));
        }
        let mut state = self.shared.state.subscribe();
        let back = state.wait_for(|state| match state {
            LinkState::Up(..) => true,
            LinkState::Down(down) => down.since.elapsed() > ANSWER_LIMIT,
        });
        let seen = match timeout(ANSWER_LIMIT, back).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) | Err(_) => self.shared.state.borrow().clone(),
        };
        match seen {
            LinkState::Up(connection, link) => Ok((connection, link)),
            LinkState::Down(down) => {
                let error = StoreError::new(self.dependency, down.kind, down.text.to_string());
                Err(self.failed(error))
            }
        }
    }
}
