//! The publishers: one for each group, which sends an event, waits for the answer, and sends the next.

use std::sync::Arc;
use std::time::Duration;

use redis::Client;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::checker::Sent;
use crate::field::{Field, HURT, Phase};
use crate::support::Publisher;

/// The longest wait for a connection to Redis.
const DIAL: Duration = Duration::from_secs(1);

/// A publisher with the URL that its link leads to.
type Link = (String, Publisher);

/// Publishes to a group until the load ebbs.
pub(crate) async fn publish(field: Arc<Field>, group: usize) {
    let tenant = field.tenant_of(group);
    // Publishers take turns: if all of them sent at once, a p99 would say how long a burst takes.
    let turn = group % field.size.groups * 2 + tenant;
    let [turn, all] = [turn, field.log.sent.len()].map(|n| n as f64);
    let first = Instant::now() + field.size.pace.mul_f64(turn / all);
    let mut tick = interval_at(first, field.size.pace);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let by_api = field.by_api && tenant == HURT;
    let mut link: Option<Link> = None;
    loop {
        tick.tick().await;
        // The load may have ebbed between two ticks, and nothing waits for an event that is sent then.
        if *field.phase.borrow() != Phase::Running {
            return;
        }
        let url = field.addresses.lock().redis[tenant].clone();
        if link.as_ref().is_none_or(|(of, _)| *of != url) && !by_api {
            link = dial(&url, &field.tenants[tenant].prefix).await;
            if link.is_none() {
                continue;
            }
        }
        let number = {
            let mut sent = field.log.sent[group].lock();
            sent.push(Sent {
                at: field.now(),
                answered: false,
            });
            sent.len() - 1
        };
        let event = json!({"type": "n", "group": group, "number": number});
        let answered = match &link {
            Some((_, through)) => {
                let name = Field::group_name(group);
                through.try_send(&name, &event).await.is_ok()
            }
            None => send(&field, group, &event).await,
        };
        if answered {
            field.log.sent[group].lock()[number].answered = true;
        } else {
            link = None;
        }
    }
}

async fn dial(url: &str, prefix: &str) -> Option<Link> {
    let client = Client::open(url).ok()?;
    let connection = client.get_multiplexed_async_connection();
    let connection: MultiplexedConnection = timeout(DIAL, connection).await.ok()?.ok()?;
    Some((url.to_owned(), Publisher::on(connection, prefix)))
}

/// Sends through the API, of each replica in turn.
async fn send(field: &Field, group: usize, event: &Value) -> bool {
    let tenant = &field.tenants[field.tenant_of(group)].name;
    let name = Field::group_name(group);
    let path = format!("/v1/tenants/{tenant}/groups/{name}/send");
    let answer = field
        .call(group % 2, "POST", &path, &event.to_string())
        .await;
    answer.is_some_and(|answer| answer.status == 200)
}
