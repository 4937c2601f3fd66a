//! The registration of a socket in the hub. It begins before groups are joined, and its drop ends it on each way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::per_address::AddressPlace;
use crate::channel_layer::SocketChannel;
use crate::close_code::CloseReason;
use crate::config::OnExcess;
use crate::consumer::{SocketHandle, member_channel};
use crate::hub::{Admitted, Budget, Excess, Member, Pending};
use crate::metrics::TenantMetrics;
use crate::relay::Relay;

/// The number of sockets of this replica, and its bound.
///
/// A request takes a place once its token is verified, so that strangers keep no client out.
#[derive(Debug)]
pub struct Occupancy {
    /// The sockets and the requests that may become one, for which a drain waits.
    present: AtomicUsize,
    /// The places that are taken.
    taken: AtomicUsize,
    most: usize,
}

impl Occupancy {
    /// Creates the count of no sockets and at most `most`.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            present: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            most,
        })
    }

    /// Lets a request in whose token is not verified yet; `None` if no place is left.
    pub fn enter(self: &Arc<Self>) -> Option<Entrant> {
        self.present.fetch_add(1, Ordering::AcqRel);
        let entrant = Entrant {
            present: Present(self.clone()),
            address: None,
        };
        (self.taken() < self.most).then_some(entrant)
    }

    /// Returns the number of sockets that are open or being opened.
    pub fn open(&self) -> usize {
        self.present.load(Ordering::Acquire)
    }

    /// Returns the number of places that are taken: those of sockets that are open, are being opened with a verified token, or
    /// say goodbye. At [`Self::most`] a handshake is refused.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Returns the bound.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Returns the places that are taken as a part of the bound. At 1 handshakes are refused.
    pub fn saturation(&self) -> f64 {
        self.taken() as f64 / self.most.max(1) as f64
    }
}

/// A request that may become a socket.
pub struct Entrant {
    present: Present,
    /// The place in the budget of the client's address, if addresses have budgets.
    address: Option<AddressPlace>,
}

/// A place in an [`Occupancy`]; its drop frees it.
pub struct SocketPlace {
    _occupied: Occupied,
    _address: Option<Box<AddressPlace>>,
}

struct Present(Arc<Occupancy>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Occupied(Present);

impl Drop for Occupied {
    fn drop(&mut self) {
        let Present(occupancy) = &self.0;
        occupancy.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Entrant {
    /// Adds the place in the budget of the client's address, if addresses have budgets.
    pub fn with_address(self, address: Option<AddressPlace>) -> Self {
        Self { address, ..self }
    }

    /// Takes a place, now that the token is verified; `None` if none is left.
    pub fn take_place(self) -> Option<SocketPlace> {
        let Present(occupancy) = &self.present;
        let (taken, most) = (
            occupancy.taken.fetch_add(1, Ordering::AcqRel),
            occupancy.most,
        );
        let place = SocketPlace {
            _occupied: Occupied(self.present),
            _address: self.address.map(Box::new),
        };
        (taken < most).then_some(place)
    }
}

/// The stage of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RegistrationStage {
    /// The socket is in the hub.
    Registered,
    /// It has left the hub, and says goodbye.
    Leaving,
    /// It has left the hub, and its queue has ended.
    Ended,
}

/// Keeps a socket in the hub of its tenant. Its drop takes the socket out of the hub and its groups.
pub struct Registration {
    socket: SocketHandle,
    _place: SocketPlace,
    stage: RegistrationStage,
    hears_channel: bool,
}

impl Registration {
    /// Registers the socket within the budgets of its tenant and its user.
    ///
    /// `is_counted` tells that `connects_per_second` has counted the handshake before.
    ///
    /// # Errors
    /// The budget that is used up.
    pub fn admit(
        member: Arc<Member>,
        relay: Arc<Relay>,
        place: SocketPlace,
        (pending, is_counted): (Option<&Pending>, bool),
    ) -> Result<(Self, Admitted), Excess> {
        let limits = relay.limits();
        let strangers = limits.of_strangers();
        let unless_counted = |per_second: u32| match is_counted {
            true => 0,
            false => per_second,
        };
        let budget = Budget {
            connections: limits.connections,
            anonymous_connections: strangers.connections,
            connects_per_second: unless_counted(limits.connects_per_second),
            anonymous_connects_per_second: unless_counted(strangers.connects_per_second),
            connections_per_user: limits.connections_per_user,
            replaces: limits.on_excess == OnExcess::Replace,
        };
        let admitted = relay.hub().admit(&member, pending, &budget)?;
        relay.metrics().connections.increment(1.0);
        if member.user().is_none() {
            relay.metrics().anonymous_connections().increment(1.0);
        }
        let registration = Self {
            socket: SocketHandle { member, relay },
            _place: place,
            stage: RegistrationStage::Registered,
            hears_channel: false,
        };
        Ok((registration, admitted))
    }

    /// Closes the user's oldest sockets down to `limits.connections_per_user`, if `on_excess` is `"replace"`.
    pub fn replace_oldest(&self) {
        let Some(user) = self.member().user() else {
            return;
        };
        let limits = self.relay().limits();
        if limits.connections_per_user == 0 || limits.on_excess != OnExcess::Replace {
            return;
        }
        let most = limits.connections_per_user as usize;
        let frame = CloseReason::Replaced.frame();
        for _ in 0..self.relay().hub().replace_oldest(user, most, &frame) {
            self.metrics().rate_limited("connections_per_user");
        }
    }

    /// Notes that the socket hears its own channel, so that its end also ends that. The caller starts the listening.
    pub fn set_hears_channel(&mut self) {
        self.hears_channel = true;
    }

    /// Returns the channel that the socket hears.
    pub fn channel(&self) -> Option<SocketChannel> {
        let channel = || member_channel(self.member());
        self.hears_channel.then(channel)
    }

    /// Returns the socket as its consumer sees it.
    pub fn socket(&self) -> &SocketHandle {
        &self.socket
    }

    /// Returns the socket in the hub.
    pub fn member(&self) -> &Arc<Member> {
        &self.socket.member
    }

    /// Returns the relay of the socket's tenant.
    pub fn relay(&self) -> &Arc<Relay> {
        &self.socket.relay
    }

    /// Returns the tenant's metrics.
    pub fn metrics(&self) -> &TenantMetrics {
        self.relay().metrics()
    }
}

impl Registration {
    /// Takes the socket out of the hub, its groups and the counts now. What is queued may still leave until [`Self::end`].
    pub fn leave(&mut self) {
        if self.stage == RegistrationStage::Registered {
            self.stage = RegistrationStage::Leaving;
            self.take_out(Relay::dismiss);
        }
    }

    /// Ends the queue, and takes the socket out of the hub. Its place in the occupancy stays taken until the registration is
    /// dropped.
    pub fn end(&mut self) {
        match std::mem::replace(&mut self.stage, RegistrationStage::Ended) {
            RegistrationStage::Registered => {
                self.member().outbound().finish();
                self.take_out(Relay::unregister);
            }
            RegistrationStage::Leaving => {
                self.member().outbound().finish();
                self.relay().forget_dismissed(self.member());
            }
            RegistrationStage::Ended => {}
        }
    }

    fn take_out(&self, out_of_hub: fn(&Relay, &Member)) {
        let SocketHandle { member, relay } = &self.socket;
        if let Some(channel) = self.channel() {
            relay.unlisten(channel);
        }
        out_of_hub(relay, member);
        relay.metrics().connections.decrement(1.0);
        if member.user().is_none() {
            relay.metrics().anonymous_connections().decrement(1.0);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before, a request had a place of the bound before its token was looked at.
    #[test]
    fn requests_without_a_verified_token_use_up_no_place() {
        let occupancy = Occupancy::new(2);
        let strangers: Vec<_> = (0..10).map_while(|_| occupancy.enter()).collect();
        assert_eq!(strangers.len(), 10);
        let enter = || occupancy.enter().unwrap();
        let (first, second, late) = (enter(), enter(), enter());
        let first = first.take_place().unwrap();
        let _second = second.take_place().unwrap();
        assert!(occupancy.enter().is_none(), "it is full");
        assert!(late.take_place().is_none(), "it came when there was room");
        assert_eq!(occupancy.open(), 12, "a drain waits for the requests, too");
        drop((first, strangers));
        assert!(enter().take_place().is_some());
        assert_eq!(occupancy.open(), 1);
    }
}
