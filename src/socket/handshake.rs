//! Does a handshake from top to bottom: `head → admit → authenticate → open → 101`.
//!
//! Each step takes the result of the one before it, and the first refusal ends the handshake. A connection carries one
//! request.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::request::Parts;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::admit::admit;
use super::answer::{hung_up, refuse, refuse_with};
use super::connection::{Connection, ReadySocket, abandon, close_at_once};
use super::half_open::HandshakePlace;
use super::head::{Arrival, NoRequest};
use super::open::open;
use super::per_address::AddressPlace;
use super::refusal_log::RefusedHandshake;
use super::rejection::Rejection;
use super::upgrade::{self, Upgrade};
use super::{Door, HANDSHAKE_DEADLINE, Peer, pages};
use crate::error::Refusal;
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
    place.enter(HandshakeStage::Answering);
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
        _ => timeout(HANDSHAKE_DEADLINE, answer(arrival, peer, place, door))
            .await
            .ok()?,
    }
}

/// The most times that one handshake is judged. Each further time takes a reload that falls into the one before.
const JUDGEMENTS: usize = 5;

/// Returns the socket of a request, or its first refusal.
///
/// A reload may replace the tenant while its checks run. A refusal of the tenant that was replaced does not count: the
/// request is judged again, by the new configuration. Its rates (`connects_per_second`) count each judgement.
async fn socket_of(
    head: &Parts,
    peer: Peer,
    door: &Door,
) -> Result<(Upgrade, Box<ReadySocket>), Rejection> {
    for _ in 1..JUDGEMENTS {
        match judge(head, peer, door).await {
            Err(rejection) if rejection.is_outdated() => {}
            judged => return judged,
        }
    }
    judge(head, peer, door).await
}

/// Runs the checks of a request in order.
async fn judge(
    head: &Parts,
    peer: Peer,
    door: &Door,
) -> Result<(Upgrade, Box<ReadySocket>), Rejection> {
    let (admitted, place) = admit(head, peer, door)?;
    // The tenant hears its control channel before the denylist is read, so that no revocation falls between.
    let opened = admitted.tenant.opens().await;
    opened.map_err(|refusal| admitted.rejects(refusal))?;
    let authenticator = &admitted.tenant.authenticator;
    let identity = authenticator.identify(head.uri.query(), &head.headers);
    let identity = identity
        .await
        .map_err(|refusal| admitted.rejects(refusal))?;
    let opened = open(&admitted, place, identity, head, door).await;
    let (socket, answer) = opened.map_err(|refused| admitted.rejects(refused))?;
    let mut upgrade = admitted.upgrade;
    if let Some(answer) = answer {
        upgrade.choose(answer);
    }
    Ok((upgrade, socket))
}

/// Answers the request. Its checks end early if the client closes the connection.
///
/// The rarer ends are boxed, so that the handshakes under way take little memory.
async fn answer(
    arrival: Arrival,
    peer: Peer,
    mut place: HandshakePlace,
    door: &Door,
) -> Option<Connection> {
    let Arrival {
        mut stream,
        head,
        early,
        ..
    } = arrival;
    let began = std::time::Instant::now();
    let came_to = tokio::select! {
        biased;
        came_to = socket_of(&head, peer, door) => came_to,
        () = hung_up(&stream) => return None,
    };
    match came_to {
        Ok((upgrade, socket)) => {
            socket.count_accepted(began.elapsed());
            socket.tell_opened();
            if stream
                .write_all(&upgrade.switching_protocols())
                .await
                .is_err()
            {
                Box::pin(abandon(*socket)).await;
                return None;
            }
            Some(Connection::new(stream, &early, socket))
        }
        Err(rejection) => {
            rejection.count(began.elapsed());
            let client = door.client_of(peer, &head);
            door.refusals.note(&rejection.described(&head, client));
            place.enter(HandshakeStage::Answered);
            if let Some((upgrade, frame)) = rejection.as_close() {
                // With `refusal = "close"` the close frame tells the client the reason.
                let accepted = upgrade.switching_protocols();
                if stream.write_all(&accepted).await.is_ok() {
                    Box::pin(close_at_once(stream, frame)).await;
                }
                return None;
            }
            Box::pin(refuse_with(stream, &rejection.problem(), &head.method)).await;
            None
        }
    }
}
