//! Does a handshake from top to bottom: `head → admit → verify → look up → open → 101`.
//!
//! Each step takes the result of the one before it, and the first refusal ends the handshake. A connection carries one
//! request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::admit::{AdmittedRequest, admit};
use super::answer::{hung_up, refuse, refuse_with};
use super::connection::{Connection, ReadySocket, abandon, close_at_once};
use super::half_open::HandshakePlace;
use super::head::{Arrival, NoRequest};
use super::open::open;
use super::per_address::AddressPlace;
use super::refusal_log::RefusedHandshake;
use super::registration::Entrant;
use super::rejection::{Reason, Rejection};
use super::upgrade::{self, Upgrade};
use super::{Door, HANDSHAKE_DEADLINE, JUDGEMENTS, Peer, pages};
use crate::consumer::Acceptance;
use crate::error::Refusal;
use crate::ids::TenantId;
use crate::metrics::{self, HandshakeStage};

/// A connection whose request has come, with what counts it until its handshake is over.
pub(super) struct Arrived {
    arrival: Arrival,
    peer: Peer,
    place: HandshakePlace,
    _address: Option<AddressPlace>,
}

/// Does the handshake of a new connection. Returns `None` if no socket comes of it; the client is then answered, unless
/// it is gone or does not speak HTTP.
pub(super) async fn shake_hands(
    stream: TcpStream,
    peer: IpAddr,
    mut place: HandshakePlace,
    door: Arc<Door>,
) -> Option<Connection> {
    let address = peer.to_canonical();
    let counted = match door.begin_handshake(address) {
        Ok(counted) => counted,
        Err(refusal) => {
            metrics::handshake_without_tenant(refusal.code());
            door.refusals.note(&unread(refusal, address));
            place.enter(HandshakeStage::Answered);
            Box::pin(refuse(stream, refusal)).await;
            return None;
        }
    };
    // Browsers open connections ahead of need, so a silent one is not an error to answer.
    let deadline = door.heads.deadline();
    let first = door.heads.first_bytes(&stream, deadline).await?;
    // Boxed step by step, so that a connection that has sent nothing has no room for the steps after it.
    let arrived = Box::pin(arrive(
        (stream, first),
        address,
        deadline,
        place,
        counted,
        &door,
    ))
    .await?;
    Box::pin(serve(arrived, &door)).await
}

/// Describes the refusal of a request that was not read.
fn unread(refusal: Refusal, client: IpAddr) -> RefusedHandshake<'static> {
    RefusedHandshake {
        refusal,
        tenant: None,
        why: None,
        head: None,
        client,
    }
}

/// Receives the request of a connection that has begun to send.
async fn arrive(
    begun: (TcpStream, BytesMut),
    address: IpAddr,
    deadline: Instant,
    mut place: HandshakePlace,
    counted: Option<AddressPlace>,
    door: &Door,
) -> Option<Box<Arrived>> {
    let read = door.heads.read(begun, address, deadline, &mut place);
    let arrival = match read.await {
        Ok(arrival) => arrival,
        Err(NoRequest::Refused(refusal)) => {
            metrics::handshake_without_tenant(refusal.code());
            door.refusals.note(&unread(refusal, address));
            return None;
        }
        Err(NoRequest::Cut) => return None,
    };
    place.enter(HandshakeStage::Unverified);
    let peer = Peer {
        address,
        proxied: arrival.proxied,
    };
    Some(Box::new(Arrived {
        arrival,
        peer,
        place,
        _address: counted,
    }))
}

/// Serves the request: a page, or a socket.
async fn serve(arrived: Box<Arrived>, door: &Arc<Door>) -> Option<Connection> {
    let Arrived {
        arrival,
        peer,
        place,
        _address,
    } = *arrived;
    match &door.pages {
        Some(pages) if !upgrade::is_asked_for(&arrival.head.headers) => {
            pages::serve(pages, arrival, peer, door).await;
            None
        }
        _ => answer(arrival, peer, place, door).await,
    }
}

/// The part of [`HANDSHAKE_DEADLINE`] that is left for the answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The state of a handshake that its judgements share.
struct Course {
    place: HandshakePlace,
    /// The time by which the last judgement must end, so that its outcome can still be answered.
    deadline: Instant,
    /// The tenant whose `connects_per_second` has counted the handshake.
    counted_by: Option<TenantId>,
}

/// Returns the socket of a request, or its first refusal.
///
/// A reload may replace the tenant while its checks run. A refusal of the tenant that was replaced does not count: the
/// request is judged again, by the new configuration.
async fn socket_of(
    head: &Parts,
    peer: Peer,
    door: &Door,
    course: &mut Course,
) -> Result<(Upgrade, Box<ReadySocket>), Rejection> {
    for _ in 1..JUDGEMENTS {
        match judge(head, peer, door, course).await {
            Err(rejection) if rejection.is_outdated() && Instant::now() < course.deadline => {}
            judged => return judged,
        }
    }
    judge(head, peer, door, course).await
}

/// Runs the checks of a request in order. Those that do not end in time are dropped, and the client is answered 503.
async fn judge(
    head: &Parts,
    peer: Peer,
    door: &Door,
    course: &mut Course,
) -> Result<(Upgrade, Box<ReadySocket>), Rejection> {
    let (mut admitted, entrant) = admit(head, peer, door).await?;
    admitted.is_counted = course.counted_by.as_ref() == Some(&admitted.tenant.id);
    let deadline = course.deadline;
    let checks = check(&mut admitted, entrant, head, door, &mut course.place);
    let checked = timeout_at(deadline, checks).await;
    let (socket, answer) = match checked.unwrap_or_else(|_| Err(Refusal::Unavailable.into())) {
        Ok(checked) => checked,
        Err(reason) => {
            let tenant = admitted.is_counted.then(|| admitted.tenant.id.clone());
            course.counted_by = tenant.or(course.counted_by.take());
            return Err(admitted.rejects(reason));
        }
    };
    let mut upgrade = admitted.upgrade;
    if let Some(answer) = answer {
        upgrade.choose(answer);
    }
    Ok((upgrade, socket))
}

/// Checks the token and what follows from it, and opens the socket.
async fn check(
    admitted: &mut AdmittedRequest,
    entrant: Entrant,
    head: &Parts,
    door: &Door,
    handshake: &mut HandshakePlace,
) -> Result<(Box<ReadySocket>, Option<Acceptance>), Reason> {
    let tenant = admitted.tenant.clone();
    let authenticator = &tenant.authenticator;
    // Until here the client may be anyone: it takes no place that another could need, and waits for no store.
    let found = authenticator.verify_if_any(head.uri.query(), &head.headers);
    let token = match found.await? {
        None if !tenant.parts[admitted.route].anonymous => return Err(Refusal::TokenMissing.into()),
        token => token,
    };
    handshake.enter(HandshakeStage::Answering);
    let place = entrant.take_place().ok_or(Refusal::Overloaded)?;
    // The tenant hears its control channel before the denylist is read, so that no revocation falls between.
    tenant.opens().await?;
    let identity = match token {
        Some(token) => Some(authenticator.look_up(token, None).await?),
        None => None,
    };
    open(admitted, place, identity, head, door).await
}

/// Writes the 101. Returns false if the client does not take it.
async fn write(stream: &mut TcpStream, upgrade: &Upgrade) -> bool {
    let accepted = upgrade.switching_protocols();
    let written = timeout(ANSWER_TIME, stream.write_all(&accepted)).await;
    matches!(written, Ok(Ok(())))
}

/// Answers the request. Its checks end early if the client closes the connection.
///
/// The rarer ends are boxed, so that the handshakes under way take little memory.
async fn answer(
    arrival: Arrival,
    peer: Peer,
    place: HandshakePlace,
    door: &Door,
) -> Option<Connection> {
    let Arrival {
        mut stream,
        head,
        early,
        ..
    } = arrival;
    let began = Instant::now();
    let mut course = Course {
        place,
        deadline: began + (HANDSHAKE_DEADLINE - ANSWER_TIME),
        counted_by: None,
    };
    let came_to = tokio::select! {
        biased;
        came_to = socket_of(&head, peer, door, &mut course) => came_to,
        () = hung_up(&stream) => return None,
    };
    match came_to {
        Ok((upgrade, socket)) => {
            socket.count_accepted(began.elapsed());
            socket.tell_opened();
            if !write(&mut stream, &upgrade).await {
                Box::pin(abandon(*socket)).await;
                return None;
            }
            Some(Connection::new(stream, &early, socket))
        }
        Err(rejection) => {
            rejection.count(began.elapsed());
            let client = door.client_of(peer, &head);
            door.refusals.note(&rejection.described(&head, client));
            course.place.enter(HandshakeStage::Answered);
            if let Some((upgrade, frame)) = rejection.as_close() {
                // With `refusal = "close"` the close frame tells the client the reason.
                if write(&mut stream, upgrade).await {
                    Box::pin(close_at_once(stream, frame)).await;
                }
                return None;
            }
            Box::pin(refuse_with(stream, &rejection.problem(), &head.method)).await;
            None
        }
    }
}
