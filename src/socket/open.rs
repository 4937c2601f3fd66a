//! Opens the socket of a verified token, or of none where the route lets anyone in: budgets, group names, authorization,
//! joining, the consumer's connect.
//!
//! [`super::handshake`] writes the 101 afterwards.

use std::net::IpAddr;
use std::time::Instant;

use axum::http::request::Parts;

use super::Door;
use super::admit::AdmittedRequest;
use super::connection::{ReadySocket, WireState};
use super::refresh::closes_at;
use super::registration::{Registration, SocketPlace};
use super::rejection::Reason;
use super::since::Positions;
use super::upgrade;
use crate::admission::Identity;
use crate::channel_layer::LayerError;
use crate::channel_names::fault_of_group_name;
use crate::close_code::CloseFrame;
use crate::consumer::{Acceptance, Consumer, Context, Handshake, Scope, guarded};
use crate::error::Refusal;
use crate::frame::Decoder;
use crate::hub::{Excess, Member, Profile};
use crate::ids::GroupName;
use crate::metrics::AuthStep;
use crate::packed_json::PackedObject;
use crate::relay::ResumeFrom;
use crate::templates::Template;
use crate::tenant::Tenant;

/// Opens the socket of `identity` in `place`; without one the socket is anonymous. `head` is the head of its request.
/// Returns the answer of its consumer too.
///
/// # Errors
/// The first refusal; the socket is then out of the hub and its groups.
pub(super) async fn open(
    admitted: &mut AdmittedRequest,
    place: SocketPlace,
    identity: Option<Identity>,
    head: &Parts,
    door: &Door,
) -> Result<(Box<ReadySocket>, Option<Acceptance>), Reason> {
    let (mut registration, mut scope) =
        register(admitted, identity, head.uri.path(), place).await?;
    let admitted = &*admitted;
    let (tenant, route) = (&*admitted.tenant, &admitted.tenant.parts[admitted.route]);
    let groups = group_names(admitted, &scope)?;
    authorize(admitted, &scope).await?;
    if tenant.relay.hears_channel(route.consumer.tells_channel) {
        registration.set_hears_channel();
    }
    match route.resume {
        false => join_groups(&registration, &groups).await?,
        true => resume_groups(&registration, &groups, head.uri.query().unwrap_or_default()).await?,
    }
    let mut handshake = Handshake {
        offered: upgrade::offered_subprotocols(&head.headers),
        answer: None,
        why: None,
    };
    let connected = connect(admitted, &registration, &scope, &mut handshake).await;
    let mut consumer = connected.map_err(|reason| reason.or_because(handshake.why.take()))?;
    if let Err(refusal) = last_look(tenant, registration.member()) {
        // The consumer has seen the connect, so it is told of the end.
        let close = CloseFrame::absent();
        let mut context = Context {
            scope: &scope,
            socket: registration.socket(),
            handshake: None,
        };
        let disconnect = consumer.disconnect(&mut context, &close);
        guarded(registration.member(), disconnect).await;
        return Err(refusal.into());
    }
    if !route.consumer.reads_claims {
        scope.claims = None;
    }
    registration.replace_oldest();
    let user = scope.user.as_ref();
    tenant.relay.enter(registration.member(), user);
    let socket = Box::new(ReadySocket {
        wire: WireState::new(
            registration,
            Decoder::new(tenant.config.limits.message_size),
            door.common.clone(),
        ),
        consumer,
        scope,
    });
    Ok((socket, handshake.answer))
}

/// Calls the connect of the route's consumer.
async fn connect(
    admitted: &AdmittedRequest,
    registration: &Registration,
    scope: &Scope,
    handshake: &mut Handshake,
) -> Result<Box<dyn Consumer>, Reason> {
    let route = &admitted.tenant.parts[admitted.route];
    let connect = async {
        let mut consumer = (route.consumer.make)(scope);
        let mut context = Context {
            scope,
            socket: registration.socket(),
            handshake: Some(handshake),
        };
        consumer.connect(&mut context).await.map(|()| consumer)
    };
    let connected = guarded(registration.member(), connect).await;
    Ok(connected.ok_or(Refusal::Unavailable)??)
}

/// Registers the socket in the budgets and the hub.
///
/// Revocations and invalidations that came since the token was verified take effect here. Later ones close the socket
/// through the hub.
async fn register(
    admitted: &mut AdmittedRequest,
    identity: Option<Identity>,
    path: &str,
    place: SocketPlace,
) -> Result<(Registration, Scope), Reason> {
    let AdmittedRequest {
        tenant,
        route,
        is_counted,
        ..
    } = admitted;
    let (mut user, token, pending) = match identity {
        Some(known) => (Some(known.user), Some(known.token), known.pending),
        None => (None, None, None),
    };
    let token = token.as_deref();
    let profile = Profile {
        user: user.as_ref().map(|user| user.id.clone()),
        jti: token.and_then(|token| token.jti.clone()),
        issued_at: token.and_then(|token| token.issued_at),
        expires_at: token.and_then(|token| closes_at(&tenant.config.token, token)),
        password: user.as_ref().and_then(|user| user.password_digest),
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
        (pending_now, *is_counted),
    )
    .map_err(|excess| over_budget(tenant, excess))?;
    *is_counted = true;
    drop(pending);
    if standing.revoked {
        return Err(Refusal::TokenRevoked.into());
    }
    if let (true, Some(token)) = (standing.stale, token) {
        user = Some(Box::pin(tenant.authenticator.user_again(token)).await?);
    }
    let scope = Scope {
        of_tenant: tenant.scope.clone(),
        user,
        claims: tenant.parts[*route].needs_claims().then(|| {
            let claims = token.map_or("{}", |token| &token.claims);
            Box::new(PackedObject::new(claims))
        }),
        client: match admitted.client {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        },
        member: registration.member().clone(),
    };
    Ok((registration, scope))
}

/// Counts an exceeded budget and returns its refusal.
fn over_budget(tenant: &Tenant, excess: Excess) -> Reason {
    let (limit, refusal) = match excess {
        Excess::Connections => ("connections", Refusal::TooManyConnections),
        Excess::AnonymousConnections => ("anonymous_connections", Refusal::TooManyConnections),
        Excess::ConnectRate => ("connects_per_second", Refusal::RateLimited),
        Excess::AnonymousConnectRate => ("anonymous_connects_per_second", Refusal::RateLimited),
        Excess::UserConnections => ("connections_per_user", Refusal::TooManyUserConnections),
    };
    tenant.metrics.rate_limited(limit);
    let strangers = tenant.relay.limits().of_strangers();
    let most = match excess {
        Excess::AnonymousConnections => strangers.connections,
        Excess::AnonymousConnectRate => strangers.connects_per_second,
        _ => return refusal.into(),
    };
    // The word of the refusal is that of the tenant's own limit.
    Reason::because(refusal, format!("no token, and limits.{limit} is {most}"))
}

/// Refuses if the tenant was suspended or replaced, or the socket was ordered closed, while groups were joined. A later
/// close finds an open socket.
fn last_look(tenant: &Tenant, member: &Member) -> Result<(), Refusal> {
    // A reload may have replaced the tenant. The handshake is then judged again, by the new configuration.
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

/// Fills the route's group templates; within `limits.groups_per_socket`.
fn group_names(admitted: &AdmittedRequest, scope: &Scope) -> Result<Vec<GroupName>, Reason> {
    let tenant = &admitted.tenant;
    let route = &tenant.parts[admitted.route];
    let limits = &tenant.config.limits;
    if !limits.allow_groups(route.groups.len()) {
        let why = format!(
            "the route has {} groups, and limits.groups_per_socket is {}",
            route.groups.len(),
            limits.groups_per_socket
        );
        tenant.metrics.rate_limited("groups_per_socket");
        return Err(Reason::because(Refusal::GroupForbidden, why));
    }
    let unnameable = |template: &Template, why: &str| {
        let why = format!("the template {:?} makes no name: {why}", template.as_str());
        Reason::because(Refusal::GroupNameNotValid, why)
    };
    let name = |template| {
        let filled = scope.fill(template, &admitted.params);
        let filled = filled.map_err(|error| unnameable(template, &error.to_string()))?;
        let name = tenant.relay.group_name(&filled);
        let namespace = tenant.relay.layer().namespace();
        name.ok_or_else(|| unnameable(template, &fault_of_group_name(&filled, namespace)))
    };
    route.groups.iter().map(name).collect()
}

/// Asks the route's `authorize` statement whether the user may join its groups.
async fn authorize(admitted: &AdmittedRequest, scope: &Scope) -> Result<(), Reason> {
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
        Ok(false) => {
            let path = &tenant.config.routes[*route].path;
            let why = format!("the authorize of the route {path:?} returned no row for the user");
            Err(Reason::because(Refusal::GroupForbidden, why))
        }
        Err(error) => {
            tracing::debug!(tenant.id = %tenant.id, error = %error, "Could not ask whether a user may join");
            let why = format!("authorize: {error}");
            Err(Reason::because(Refusal::Unavailable, why))
        }
    }
}

/// Subscribes the socket to its groups and, if its route needs it, to its own channel.
async fn join_groups(registration: &Registration, groups: &[GroupName]) -> Result<(), Reason> {
    // All joins run together, because the layer sends concurrent subscriptions as one command.
    let joins = groups
        .iter()
        .map(|group| registration.relay().join(registration.member(), group));
    joined(registration, joins).await
}

/// Subscribes the socket as [`join_groups`] does. In each group with history it is told its position, or gets what it missed
/// since the position in the query, before live events of the group.
async fn resume_groups(
    registration: &Registration,
    groups: &[GroupName],
    query: &str,
) -> Result<(), Reason> {
    let (relay, member) = (registration.relay(), registration.member());
    let positions = Positions::in_query(query);
    let returns = |group: &GroupName| matches!(positions.of(group), Some(ResumeFrom::Position(_)));
    relay.hold(member, groups, returns);
    let joins = groups.iter().map(async |group| {
        relay.add_to_group(member, group).await?;
        relay.resume(member, group, positions.of(group)).await;
        Ok(())
    });
    joined(registration, joins).await?;
    let resumed = |group: &GroupName| groups.contains(group) && relay.has_history(group);
    for stranger in positions.strangers(resumed) {
        relay.tell_stranger(member, stranger);
    }
    Ok(())
}

async fn joined(
    registration: &Registration,
    joins: impl Iterator<Item = impl Future<Output = Result<(), LayerError>>>,
) -> Result<(), Reason> {
    let started = Instant::now();
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
    let joined = joined.map(drop);
    joined.map_err(|error| Reason::because(Refusal::Unavailable, error.to_string()))
}
