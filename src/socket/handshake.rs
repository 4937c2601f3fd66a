//! Does a handshake from top to bottom: `head → admit → authenticate → open → 101`.
//!
//! Each step takes the result of the one before it, and the first refusal ends the handshake. A connection carries one
//! request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::http::request::Parts;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::admit::admit;
use super::answer::{hung_up, refuse, refuse_with};
use super::connection::{Connection, ReadySocket, abandon, close_at_once};
use super::head::{Arrival, NoRequest};
use super::open::open;
use super::rejection::Rejection;
use super::upgrade::{self, Upgrade};
use super::{Door, HANDSHAKE_DEADLINE, Peer, pages};
use crate::metrics;

/// Does the handshake of a new connection. Returns `None` if no socket comes of it; the client is then answered, unless
/// it is gone or does not speak HTTP.
pub(super) async fn shake_hands(
    stream: TcpStream,
    peer: IpAddr,
    door: &Arc<Door>,
) -> Option<Connection> {
    let address = peer.to_canonical();
    let _counted = match door.begin_handshake(address) {
        Ok(counted) => counted,
        Err(refusal) => {
            metrics::handshake_without_tenant(refusal.code());
            refuse(stream, refusal).await;
            return None;
        }
    };
    let arrival = match door.heads.read(stream, address).await {
        Ok(arrival) => arrival,
        Err(NoRequest::Refused(refusal)) => {
            metrics::handshake_without_tenant(refusal.code());
            return None;
        }
        Err(NoRequest::Cut) => return None,
    };
    let peer = Peer {
        address,
        proxied: arrival.proxied,
    };
    match &door.pages {
        Some(pages) if !upgrade::is_asked_for(&arrival.head.headers) => {
            pages::serve(pages, arrival, peer, door).await;
            None
        }
        _ => timeout(HANDSHAKE_DEADLINE, answer(arrival, peer, door))
            .await
            .ok()?,
    }
}

/// Runs the checks of a request in order and returns its socket, or the first refusal.
async fn socket_of(
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
async fn answer(arrival: Arrival, peer: Peer, door: &Door) -> Option<Connection> {
    let Arrival {
        mut stream,
        head,
        early,
        ..
    } = arrival;
    let began = Instant::now();
    let came_to = tokio::select! {
        biased;
        came_to = socket_of(&head, peer, door) => came_to,
        () = hung_up(&stream) => return None,
    };
    match came_to {
        Ok((upgrade, socket)) => {
            socket.count_accepted(began.elapsed());
            if stream
                .write_all(&upgrade.switching_protocols())
                .await
                .is_err()
            {
                abandon(*socket).await;
                return None;
            }
            Some(Connection::new(stream, &early, socket))
        }
        Err(rejection) => {
            rejection.count(began.elapsed());
            if let Some((upgrade, frame)) = rejection.as_close() {
                // With `refusal = "close"` the close frame tells the client the reason.
                let accepted = upgrade.switching_protocols();
                if stream.write_all(&accepted).await.is_ok() {
                    close_at_once(stream, frame).await;
                }
                return None;
            }
            refuse_with(stream, &rejection.problem(), &head.method).await;
            None
        }
    }
}
