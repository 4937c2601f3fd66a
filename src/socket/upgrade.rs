//! From an upgrade request to a socket that is ready to run: the order of refusals, and the 101.
//!
//! Three stages: [`check`] does what needs no token (steps 1 to 6), [`crate::token_auth`] steps 7 to 10, and
//! [`join`] steps 11 to 14. Whatever the inner stages refuse, `check` turns into what the tenant wants clients to
//! see: a problem document, or an accepted socket that closes at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;

use super::Door;
use super::connection::{ReadySocket, guarded};
use super::handshake::{self, WebSocketKey};
use super::per_address::AddressPlace;
use super::registration::{Place, Registration};
use crate::admission::Identity;
use crate::clock::UnixTime;
use crate::close_code::CloseFrame;
use crate::config::{ClientAddress, OnExpiry, RefusalMode};
use crate::consumer::{Context, Refused, Scope};
use crate::error::Refusal;
use crate::frame::Decoder;
use crate::hub::{Excess, Member, Profile};
use crate::ids::GroupName;
use crate::metrics::{self, AuthStep};
use crate::problem::Problem;
use crate::rate::Bucket;
use crate::routes::PathParams;
use crate::tenant::Tenant;

/// What the connection does once its 101 has left; the accept loop looks here.
#[derive(Clone, Default)]
pub struct Outcome(Arc<Mutex<Option<After101>>>);

/// After the 101.
pub enum After101 {
    /// The socket is served.
    Serve(Box<ReadySocket>),
    /// The refusal that the client could not have read as a status.
    Close(CloseFrame),
}

impl Outcome {
    /// What the handshake came to, if it came to a 101.
    pub fn take(&self) -> Option<After101> {
        self.0.lock().take()
    }

    fn set(&self, after: After101) {
        *self.0.lock() = Some(after);
    }
}

/// Who connects, as the accept loop knows it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The other end of the TCP connection.
    pub address: IpAddr,
    /// Whom a PROXY header named.
    pub proxied: Option<SocketAddr>,
}

/// A request that passed the first stage.
#[derive(Clone)]
struct Admitted {
    tenant: Arc<Tenant>,
    route: usize,
    params: PathParams,
    client: IpAddr,
    key: WebSocketKey,
    subprotocol: Option<HeaderValue>,
    place: Arc<Mutex<Option<Place>>>,
    /// Counts the handshake for a client behind a proxy until it is over.
    _handshake: Option<Arc<AddressPlace>>,
}

/// A refusal of the first stage, with the tenant once it was found.
struct Early {
    refusal: Refusal,
    tenant: Option<Arc<Tenant>>,
    /// The upgrade itself is well-formed, so that it can be accepted in order to be closed.
    accept: Option<(WebSocketKey, Option<HeaderValue>)>,
}

impl From<Refusal> for Early {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            tenant: None,
            accept: None,
        }
    }
}

/// Steps 1 to 6, and the shape of every refusal.
pub async fn check(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let outcome = request
        .extensions()
        .get::<Outcome>()
        .cloned()
        .unwrap_or_default();
    let response = match admit(&door, &mut request) {
        Ok(admitted) => {
            let (tenant, accept) = (
                admitted.tenant.clone(),
                (admitted.key, admitted.subprotocol.clone()),
            );
            request
                .extensions_mut()
                .insert(tenant.authenticator.clone());
            request.extensions_mut().insert(admitted);
            let response = next.run(request).await;
            let refusal = response.extensions().get::<Refusal>().copied();
            let chosen = response.extensions().get::<CloseFrame>().cloned();
            tenant
                .metrics
                .handshake(refusal.map_or("accepted", Refusal::code));
            let frame = refusal.and_then(|refusal| chosen.or_else(|| refusal.close_frame()));
            match frame.and_then(|frame| close_instead(&tenant, frame, &accept, &outcome)) {
                Some(accepted) => accepted,
                None => response,
            }
        }
        Err(early) => refuse(early, &outcome),
    };
    metrics::handshake_took(started.elapsed());
    response
}

fn refuse(early: Early, outcome: &Outcome) -> Response {
    let Some(tenant) = early.tenant else {
        metrics::handshake_without_tenant(early.refusal.code());
        return Problem {
            refusal: early.refusal,
            tenant: None,
        }
        .response();
    };
    tenant.metrics.handshake(early.refusal.code());
    let accepted = early.accept.and_then(|accept| {
        let frame = early.refusal.close_frame()?;
        close_instead(&tenant, frame, &accept, outcome)
    });
    accepted.unwrap_or_else(|| {
        Problem {
            refusal: early.refusal,
            tenant: Some(&tenant.id),
        }
        .response()
    })
}

/// With `refusal = "close"`: the 101 after which the socket closes with the refusal's frame.
fn close_instead(
    tenant: &Tenant,
    frame: CloseFrame,
    (key, subprotocol): &(WebSocketKey, Option<HeaderValue>),
    outcome: &Outcome,
) -> Option<Response> {
    if tenant.config.refusal == RefusalMode::Http {
        return None;
    }
    outcome.set(After101::Close(frame));
    Some(handshake::switching_protocols(key, subprotocol.clone()))
}

fn admit(door: &Door, request: &mut Request) -> Result<Admitted, Early> {
    let (parts, body) = std::mem::take(request).into_parts();
    let admitted = admit_parts(door, &parts);
    *request = Request::from_parts(parts, body);
    admitted
}

fn admit_parts(door: &Door, parts: &axum::http::request::Parts) -> Result<Admitted, Early> {
    let host = handshake::request_host(parts)?;
    if door.life.is_refusing() {
        return Err(Refusal::Draining.into());
    }
    let place = door.occupancy.take().ok_or(Refusal::Overloaded)?;
    let peer = parts
        .extensions
        .get::<Peer>()
        .copied()
        .ok_or(Refusal::RequestNotValid)?;
    let client = door
        .address_finder
        .client(peer.address, peer.proxied, &parts.headers);
    let handshake = match door.config.client_address {
        ClientAddress::Peer => None,
        _ => door.addresses.begin_handshake(client)?,
    };
    let place = door.addresses.admit(client, place)?;
    let tenant = door
        .tenants
        .by_host(host.as_str())
        .ok_or(Refusal::TenantNotFound)?;
    let mut early = Early {
        refusal: Refusal::RouteNotFound,
        tenant: Some(tenant.clone()),
        accept: None,
    };
    if tenant.is_suspended() {
        return Err(Early {
            refusal: Refusal::TenantSuspended,
            ..early
        });
    }
    let Some((route, params)) = tenant.place.routes.find(parts.uri.path()) else {
        return Err(early);
    };
    let key = match handshake::check_upgrade(parts) {
        Ok(key) => key,
        Err(refusal) => return Err(Early { refusal, ..early }),
    };
    let subprotocol =
        handshake::answer_subprotocol(&parts.headers, &tenant.parts[route].subprotocols);
    early.accept = Some((key, subprotocol.clone()));
    if let Err(refusal) = tenant.origins.check(&parts.headers, &host) {
        return Err(Early { refusal, ..early });
    }
    if tenant.is_degraded() {
        return Err(Early {
            refusal: Refusal::Unavailable,
            ..early
        });
    }
    let place = Arc::new(Mutex::new(Some(place)));
    Ok(Admitted {
        tenant: tenant.clone(),
        route,
        params,
        client,
        key,
        subprotocol,
        place,
        _handshake: handshake.map(Arc::new),
    })
}

/// Steps 11 to 14: groups, authorization, joining, and the 101.
pub async fn join(State(door): State<Arc<Door>>, mut request: Request) -> Response {
    let extensions = request.extensions_mut();
    let found = (
        extensions.remove::<Admitted>(),
        extensions.remove::<Identity>(),
        extensions.remove::<Outcome>(),
    );
    let (Some(admitted), Some(identity), Some(outcome)) = found else {
        return Problem {
            refusal: Refusal::RequestNotValid,
            tenant: None,
        }
        .response();
    };
    match open(&door, &admitted, identity, request.uri().path()).await {
        Ok(socket) => {
            outcome.set(After101::Serve(Box::new(socket)));
            handshake::switching_protocols(&admitted.key, admitted.subprotocol)
        }
        Err(Rejected { refusal, close }) => {
            let mut response = Problem {
                refusal,
                tenant: Some(&admitted.tenant.id),
            }
            .response();
            if let Some(close) = close {
                response.extensions_mut().insert(close);
            }
            response
        }
    }
}

/// A refusal of the second stage.
struct Rejected {
    refusal: Refusal,
    /// The frame that a consumer closes the socket with, where the tenant's refusals are closes.
    close: Option<CloseFrame>,
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            close: None,
        }
    }
}

impl From<Refused> for Rejected {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forbidden => Refusal::Refused.into(),
            Refused::Unavailable => Refusal::Unavailable.into(),
            Refused::ClosedWith(frame) => Self {
                refusal: Refusal::Refused,
                close: Some(frame),
            },
        }
    }
}

async fn open(
    door: &Door,
    admitted: &Admitted,
    identity: Identity,
    path: &str,
) -> Result<ReadySocket, Rejected> {
    let (tenant, route) = (&*admitted.tenant, &admitted.tenant.parts[admitted.route]);
    let place = admitted.place.lock().take().ok_or(Refusal::Overloaded)?;
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
    Ok(ReadySocket {
        backlog: None,
        partial: None,
        registration,
        consumer,
        scope,
        decoder: Decoder::new(tenant.config.limits.message_size),
        messages: Bucket::default(),
        heartbeat: door.heartbeat.clone(),
    })
}

/// Step 11: a place in the budgets and in the hub. What was announced about the token or its user since the handshake
/// was entered into the indexes is answered here; from here on it closes the socket.
async fn register(
    admitted: &Admitted,
    identity: Identity,
    path: &str,
    place: Place,
) -> Result<(Registration, Scope), Refusal> {
    let Admitted { tenant, route, .. } = admitted;
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
    let pending_now = pending.as_ref().map(|place| &**place.pending());
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
        place: tenant.place.clone(),
        user,
        // Copied to its exact size: it lives as long as the socket, and was grown in a larger block.
        claims: (*token.claims).into(),
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
    if tenant.is_suspended() {
        return Err(Refusal::TenantSuspended);
    }
    if tenant.retired.load(Ordering::Acquire) {
        // Of the new configuration nothing is known here: whoever comes again finds it.
        return Err(Refusal::Unavailable);
    }
    match member
        .outbound()
        .closing_cause()
        .and_then(Refusal::of_close)
    {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

fn group_names(admitted: &Admitted, scope: &Scope) -> Result<Vec<GroupName>, Refusal> {
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

async fn authorize(admitted: &Admitted, scope: &Scope) -> Result<(), Refusal> {
    let Admitted {
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
    metrics::auth_step_took(AuthStep::Authorize, started.elapsed());
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
    metrics::auth_step_took(AuthStep::Join, started.elapsed());
    joined.map(drop).map_err(|_| Refusal::Unavailable)
}
