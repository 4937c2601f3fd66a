//! The tasks behind the channels that belong to no tenant: that of answers to this replica's questions, and the
//! deployment's control channel.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::message::{Answer, Command, Op};
use super::{Fleet, Reply};
use crate::channel_layer::{Control, Heard};
use crate::tasks;

/// Takes answers to questions of this replica. Never returns.
pub async fn serve_replies(control: Arc<Control>, fleet: Arc<Fleet>) -> Infallible {
    loop {
        if let Heard::Message(bytes) = control.next().await
            && let Ok(answer) = serde_json::from_slice::<Answer>(&bytes)
        {
            fleet.answered(answer);
        }
    }
}

/// Acts on the messages of the deployment's control channel. Never returns. `reload` reads the configuration again; its
/// error names the faults.
pub async fn serve_deployment<F, R>(
    control: Arc<Control>,
    fleet: Arc<Fleet>,
    reload: F,
) -> Infallible
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    let told = AtomicBool::new(false);
    loop {
        let Heard::Message(bytes) = control.next().await else {
            continue;
        };
        match Command::read(&bytes) {
            Ok(Command {
                op: Op::Reload,
                id,
                reply,
            }) => {
                let reply = Reply::new(&fleet, &control, id, reply);
                if reply.is_own() {
                    // This replica asked, and it applied its files before it asked.
                    reply.send(|_| {});
                    continue;
                }
                let applied = reload();
                // A task of its own, because reading all files takes time and further messages must not wait.
                tasks::brief(async move {
                    let outcome = applied.await;
                    reply.send(|answer| answer.error = outcome.err());
                });
            }
            _ if !told.swap(true, Ordering::Relaxed) => {
                tracing::warn!("Ignored a message on the deployment's control channel");
            }
            _ => {}
        }
    }
}
