//! Checks the rights of the gateway's login on a Redis server: for itself, and for each tenant.

use super::finding::{Findings, Severity, with_kind};
use super::reach::ACL_ADVICE;
use super::servers::Usage;
use crate::channel_names::{channel_from_beginning, group_channel_beginning};
use crate::config::LayerKind;
use crate::error::{ErrorKind, StoreError};
use crate::ids::{GroupName, Jti, ReplicaId, UserId};
use crate::stores::inspection;
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;

/// Checks the rights that the gateway itself needs on every server: keys and channels under `lockgate::`. With a `shard` they
/// are those of the cluster's node that has the slot of this number.
pub(super) async fn of_gateway(
    findings: &mut Findings,
    subject: &str,
    (store, shard): (&RedisStore, Option<u32>),
) {
    let doctor = ReplicaId::from(format!("doctor-{:x}", rand::random::<u64>()));
    let own = match shard {
        Some(number) => redis_keys::shard_canary(&doctor, number),
        None => redis_keys::canary(&doctor),
    };
    match inspection::write(store, &own).await {
        Ok(()) => findings.add((subject, "write"), Severity::Ok, "a key can be written", ""),
        Err(error) => findings.add(
            (subject, "write"),
            Severity::Fail,
            with_kind(&error),
            write_advice(&error),
        ),
    }
    match inspection::echo(store, &own).await {
        Ok(took) => findings.add(
            (subject, "pubsub"),
            Severity::Ok,
            format!("a canary came back in {took:.1?}"),
            "",
        ),
        Err(error) => {
            let advice = match error.kind {
                ErrorKind::Permission => ACL_ADVICE,
                _ => {
                    "events do not pass: look at the server's clients, and at any proxy in between"
                }
            };
            findings.add(
                (subject, "pubsub"),
                Severity::Fail,
                with_kind(&error),
                advice,
            );
        }
    }
}

fn write_advice(error: &StoreError) -> &'static str {
    match error.kind {
        ErrorKind::Permission => ACL_ADVICE,
        _ => {
            "users cannot be cached and tokens cannot be revoked: look at role, memory and disk of the server"
        }
    }
}

/// Checks the rights that the gateway needs for one tenant. Its keys and channels have random names, so that no other
/// process reads them.
pub(super) async fn of_tenant(
    findings: &mut Findings,
    on: (&str, &'static str),
    store: &RedisStore,
    usage: &Usage,
) {
    let (tenant, probe) = (
        &usage.tenant,
        format!("lockgate.doctor.{:x}", rand::random::<u64>()),
    );
    let (mut refused, mut unanswered) = (Vec::new(), Vec::new());
    let mut asked = |what: String, answer: Result<(), StoreError>| match answer {
        Err(error) if error.kind == ErrorKind::Permission => refused.push(what),
        // A node of the cluster that is away.
        Err(error) if error.kind.is_outage() => unanswered.push(what),
        // Other errors, for example of a server that takes no writes, are findings of [`of_gateway`].
        Err(_) | Ok(()) => {}
    };
    if usage.denylist {
        let key = redis_keys::deny_jti(tenant, &Jti::from(probe.clone()));
        asked(format!("read {key}"), inspection::read(store, &key).await);
        asked(format!("write {key}"), inspection::write(store, &key).await);
    }
    if usage.users {
        let key = redis_keys::user_generation(tenant, &UserId::from(probe.clone()));
        asked(format!("read {key}"), inspection::read(store, &key).await);
        asked(format!("write {key}"), inspection::write(store, &key).await);
        let control = redis_keys::control(tenant);
        let subscribed = inspection::subscribe(store, &control).await;
        asked(format!("subscribe {control}"), subscribed);
    }
    match &usage.layer {
        Some((LayerKind::PubSub | LayerKind::Sharded, prefix)) => {
            let beginning = group_channel_beginning(prefix, &usage.namespace);
            let channel = channel_from_beginning(&beginning, &GroupName::from(probe));
            let channel = String::from_utf8_lossy(&channel).into_owned();
            let echo = inspection::echo(store, &channel).await.map(drop);
            asked(format!("publish and subscribe {channel}"), echo);
        }
        Some((LayerKind::Core, prefix)) => {
            let key = format!("{prefix}{probe}");
            asked(format!("write {key}"), inspection::write(store, &key).await);
        }
        Some((LayerKind::Memory, _)) | None => {}
    }
    if !refused.is_empty() {
        let detail = format!("{tenant}: the login may not {}", refused.join(", "));
        findings.add(on, Severity::Fail, detail, ACL_ADVICE);
    } else if !unanswered.is_empty() {
        let detail = format!("{tenant}: unknown, no answer to: {}", unanswered.join(", "));
        findings.add(
            on,
            Severity::Note,
            detail,
            "run doctor again once the server answers",
        );
    } else {
        let detail = format!("{tenant}: its keys and channels");
        findings.add(on, Severity::Ok, detail, "");
    }
}
