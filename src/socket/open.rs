//! From a verified token to a socket that is ready to run: budgets, groups, authorization, joining.
//!
//! Steps 11 to 14 of a socket's life; the 101 itself is written by [`super::handshake`].

use std::time::Instant;

use super::Door;
use super::admit::AdmittedRequest;
use super::connection::{ReadySocket, guarded};
use super::registration::{Registration, SocketPlace};
use super::rejection::Reason;
use crate::admission::Identity;
use crate::clock::UnixTime;
use crate::close_code::CloseFrame;
use crate::config::OnExpiry;
use crate::consumer::{Context, Scope};
use crate::error::Refusal;
use crate::frame::Decoder;
use crate::hub::{Excess, Member, Profile};
use crate::ids::GroupName;
use crate::metrics::AuthStep;
use crate::packed_json::PackedObject;
use crate::rate::Bucket;
use crate::tenant::Tenant;

/// Opens the socket of `identity` in `place`; `path` is that of its request.
///
/// # Errors
/// The first refusal. Nothing of the socket is left then.
pub(super) async fn open(
    admitted: &AdmittedRequest,
    place: SocketPlace,
    identity: Identity,
    path: &str,
    door: &Door,
) -> Result<Box<ReadySocket>, Reason> {
    let (tenant, route) = (&*admitted.tenant, &admitted.tenant.parts[admitted.route]);
    let (mut registration, scope) = register(admitted, identity, path, place).await?;
    let groups = group_names(admitted, &scope)?;
    authorize(admitted, &scope).await?;
    if tenant.relay.hears_channel(route.consumer.tells_channel) {
        registration.set_hears_channel();
    }
    join_groups(&registration, &groups).await?;
    let connect = async {
        let mut consumer = (route.consumer.make)(&scope);
        let mut context = Context {
            scope: &scope,
            member: registration.member(),
            relay: registration.relay(),
        };
        consumer.connect(&mut context).await.map(|()| consumer)
    };
    let connected = guarded(registration.member(), connect).await;
    let mut consumer = connected.ok_or(Refusal::Unavailable)??;
    if let Err(refusal) = last_look(tenant, registration.member()) {
        // It has seen the socket connect.
        let close = CloseFrame::absent();
        let disconnect = consumer.disconnect(&scope, &close);
        guarded(registration.member(), disconnect).await;
        return Err(refusal.into());
    }
    registration.replace_oldest();
    Ok(Box::new(ReadySocket {
        backlog: None,
        partial: None,
        registration,
        consumer,
        scope,
        decoder: Decoder::new(tenant.config.limits.message_size),
        messages: Bucket::default(),
        heartbeat: door.heartbeat.clone(),
    }))
}

/// Step 11: a place in the budgets and in the hub. What was announced about the token or its user since the handshake
/// was entered into the indexes is answered here; from here on it closes the socket.
async fn register(
    admitted: &AdmittedRequest,
    identity: Identity,
    path: &str,
    place: SocketPlace,
) -> Result<(Registration, Scope), Refusal> {
    let AdmittedRequest { tenant, route, .. } = admitted;
    let Identity {
        mut user,
        token,
        pending,
    } = identity;
    let profile = Profile {
        user: user.id.clone(),
        jti: token.jti.clone(),
        issued_at: token.issued_at,
        expires_at: match tenant.config.token.on_expiry {
            OnExpiry::Close => token.expires_at.map(UnixTime),
            OnExpiry::Keep => None,
        },
        password: user.password_digest,
        path: path.into(),
        channel: rand::random(),
        delivery: tenant.parts[*route].delivery,
        send_queue: tenant.relay.limits().send_queue,
    };
    let pending_now = pending.as_ref().map(|entered| &**entered.pending());
    let (registration, standing) = Registration::admit(
        Member::new(profile),
        tenant.relay.clone(),
        place,
        pending_now,
    )
    .map_err(|excess| over_budget(tenant, excess))?;
    drop(pending);
    if standing.revoked {
        return Err(Refusal::TokenRevoked);
    }
    if standing.stale {
        user = tenant.authenticator.user_again(&token).await?;
    }
    let scope = Scope {
        of_tenant: tenant.scope.clone(),
        user,
        claims: PackedObject::new(&token.claims),
        client: admitted.client,
        member: registration.member().clone(),
    };
    Ok((registration, scope))
}

fn over_budget(tenant: &Tenant, excess: Excess) -> Refusal {
    let (limit, refusal) = match excess {
        Excess::Connections => ("connections", Refusal::TooManyConnections),
        Excess::ConnectRate => ("connects_per_second", Refusal::RateLimited),
        Excess::UserConnections => ("connections_per_user", Refusal::TooManyUserConnections),
    };
    tenant.metrics.rate_limited(limit);
    refusal
}

/// What happened to the tenant or the socket while groups were joined. A close that comes later finds an open socket.
fn last_look(tenant: &Tenant, member: &Member) -> Result<(), Refusal> {
    // Suspended, or replaced by a reload, of whose configuration nothing is known here.
    tenant.admits()?;
    match member
        .outbound()
        .closing_cause()
        .and_then(Refusal::of_close)
    {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

fn group_names(admitted: &AdmittedRequest, scope: &Scope) -> Result<Vec<GroupName>, Refusal> {
    let tenant = &admitted.tenant;
    let route = &tenant.parts[admitted.route];
    let most = tenant.config.limits.groups_per_socket as usize;
    if most != 0 && route.groups.len() > most {
        return Err(Refusal::GroupForbidden);
    }
    let name = |template| {
        let filled = scope
            .fill(template, &admitted.params)
            .map_err(|_| Refusal::GroupNameNotValid)?;
        tenant
            .relay
            .group_name(&filled)
            .ok_or(Refusal::GroupNameNotValid)
    };
    route.groups.iter().map(name).collect()
}

async fn authorize(admitted: &AdmittedRequest, scope: &Scope) -> Result<(), Refusal> {
    let AdmittedRequest {
        tenant,
        route,
        params,
        ..
    } = admitted;
    let started = Instant::now();
    let verdict = tenant
        .permissions
        .may_join(*route, scope.user_id(), params)
        .await;
    tenant
        .metrics
        .auth_step_took(AuthStep::Authorize, started.elapsed());
    match verdict {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refusal::GroupForbidden),
        Err(error) => {
            tracing::debug!(tenant.id = %tenant.id, error = %error, "Could not ask whether a user may join");
            Err(Refusal::Unavailable)
        }
    }
}

async fn join_groups(registration: &Registration, groups: &[GroupName]) -> Result<(), Refusal> {
    let started = Instant::now();
    // All at once: the layer sends what waits together as one command.
    let joins = groups
        .iter()
        .map(|group| registration.relay().join(registration.member(), group));
    let joins = futures_util::future::try_join_all(joins);
    let listens = async {
        match registration.channel() {
            Some(channel) => {
                let (relay, member) = (registration.relay(), registration.member());
                relay.listen(member, channel).await
            }
            None => Ok(()),
        }
    };
    let joined = futures_util::future::try_join(joins, listens).await;
    registration
        .metrics()
        .auth_step_took(AuthStep::Join, started.elapsed());
    joined.map(drop).map_err(|_| Refusal::Unavailable)
}
