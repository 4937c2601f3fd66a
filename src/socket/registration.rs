//! The registration of a socket in the hub. It begins before groups are joined, and its drop ends it on each way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::per_address::AddressPlace;
use crate::channel_layer::SocketChannel;
use crate::close_code::CloseReason;
use crate::config::OnExcess;
use crate::consumer::member_channel;
use crate::hub::{Admitted, Budget, Excess, Member, Pending};
use crate::metrics::TenantMetrics;
use crate::relay::Relay;

/// The number of sockets of this replica, and its bound.
#[derive(Debug)]
pub struct Occupancy {
    open: AtomicUsize,
    most: usize,
}

impl Occupancy {
    /// Creates the count of no sockets and at most `most`.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            most,
        })
    }

    /// Takes one place; `None` if none is left.
    pub fn take(self: &Arc<Self>) -> Option<SocketPlace> {
        let open = self.open.fetch_add(1, Ordering::AcqRel);
        let place = SocketPlace {
            _occupied: Occupied(self.clone()),
            _address: None,
        };
        (open < self.most).then_some(place)
    }

    /// Returns the number of sockets that are open or being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Returns the bound.
    pub fn most(&self) -> usize {
        self.most
    }
}

/// A place in an [`Occupancy`]; its drop frees it.
pub struct SocketPlace {
    _occupied: Occupied,
    /// The place in the budget of the client's address, if addresses have budgets.
    _address: Option<Box<AddressPlace>>,
}

struct Occupied(Arc<Occupancy>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SocketPlace {
    /// Adds the place in the budget of the client's address, if addresses have budgets.
    pub fn with_address(self, address: Option<AddressPlace>) -> Self {
        Self {
            _address: address.map(Box::new),
            ..self
        }
    }
}

/// Keeps a socket in the hub of its tenant. Its drop takes the socket out of the hub and its groups.
pub struct Registration {
    member: Arc<Member>,
    relay: Arc<Relay>,
    _place: SocketPlace,
    registered: bool,
    hears_channel: bool,
}

impl Registration {
    /// Registers the socket within the budgets of its tenant and its user.
    ///
    /// # Errors
    /// The budget that is used up.
    pub fn admit(
        member: Arc<Member>,
        relay: Arc<Relay>,
        place: SocketPlace,
        pending: Option<&Pending>,
    ) -> Result<(Self, Admitted), Excess> {
        let limits = relay.limits();
        let budget = Budget {
            connections: limits.connections,
            connects_per_second: limits.connects_per_second,
            connections_per_user: limits.connections_per_user,
            replaces: limits.on_excess == OnExcess::Replace,
        };
        let admitted = relay.hub().admit(&member, pending, &budget)?;
        relay.metrics().connections.increment(1.0);
        let registration = Self {
            member,
            relay,
            _place: place,
            registered: true,
            hears_channel: false,
        };
        Ok((registration, admitted))
    }

    /// Closes the user's oldest sockets down to `limits.connections_per_user`, if `on_excess` is `"replace"`.
    pub fn replace_oldest(&self) {
        let limits = self.relay.limits();
        if limits.connections_per_user == 0 || limits.on_excess != OnExcess::Replace {
            return;
        }
        let most = limits.connections_per_user as usize;
        let frame = CloseReason::Replaced.frame();
        let user = self.member.user();
        for _ in 0..self.relay.hub().replace_oldest(user, most, &frame) {
            self.metrics().rate_limited("connections_per_user");
        }
    }

    /// Notes that the socket hears its own channel, so that its end also ends that. The caller starts the listening.
    pub fn set_hears_channel(&mut self) {
        self.hears_channel = true;
    }

    /// Returns the channel that the socket hears.
    pub fn channel(&self) -> Option<SocketChannel> {
        let channel = || member_channel(&self.member);
        self.hears_channel.then(channel)
    }

    /// Returns the socket in the hub.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Returns the relay of the socket's tenant.
    pub fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    /// Returns the tenant's metrics.
    pub fn metrics(&self) -> &TenantMetrics {
        self.relay.metrics()
    }
}

impl Registration {
    /// Takes the socket out of the hub now. Its place in the occupancy stays taken until the registration is dropped.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.registered) {
            self.member.outbound().finish();
            if let Some(channel) = self.channel() {
                self.relay.unlisten(channel);
            }
            self.relay.unregister(&self.member);
            self.relay.metrics().connections.decrement(1.0);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.end();
    }
}
