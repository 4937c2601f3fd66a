//! Budgets of client addresses (`server.per_address`): connections, handshakes under way, connects per second.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::client_address::counting_key;
use crate::config;
use crate::error::Refusal;
use crate::rate::Bucket;

/// The time after which an address without sockets and handshakes is dropped; its bucket is full again by then.
const FORGET: Duration = Duration::from_secs(3);

/// The budgets of all client addresses.
pub struct AddressBudgets {
    config: config::PerAddress,
    addresses: Mutex<HashMap<IpAddr, Account>>,
}

/// The use of one address.
struct Account {
    connections: u32,
    handshakes: u32,
    bucket: Bucket,
    last: Instant,
}

/// The number of an address that a place counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BudgetKind {
    Connection,
    Handshake,
}

/// A place in the budget of an address; its drop frees it.
pub struct AddressPlace {
    budget: Arc<AddressBudgets>,
    address: IpAddr,
    counted: BudgetKind,
}

impl AddressBudgets {
    /// Creates budgets as configured; 0 is no limit.
    pub fn new(config: config::PerAddress) -> Arc<Self> {
        Arc::new(Self {
            config,
            addresses: Mutex::default(),
        })
    }

    /// Counts a handshake under way; its place is to be held until it is over.
    ///
    /// # Errors
    /// [`Refusal::TooManyConnections`] at `handshakes`.
    pub fn begin_handshake(
        self: &Arc<Self>,
        client: IpAddr,
    ) -> Result<Option<AddressPlace>, Refusal> {
        if self.config.handshakes == 0 {
            return Ok(None);
        }
        self.count(client, BudgetKind::Handshake, self.config.handshakes)
            .map(Some)
    }

    /// Counts an upgrade request, and its socket for as long as the place is held.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] over `connects_per_second`, [`Refusal::TooManyConnections`] at `connections`.
    pub fn admit(self: &Arc<Self>, client: IpAddr) -> Result<Option<AddressPlace>, Refusal> {
        if self.config.connects_per_second != 0 {
            let mut addresses = self.addresses.lock();
            let now = Instant::now();
            if !self
                .account(&mut addresses, counting_key(client), now)
                .bucket
                .take(now, self.config.connects_per_second)
            {
                return Err(Refusal::RateLimited);
            }
        }
        if self.config.connections == 0 {
            return Ok(None);
        }
        self.count(client, BudgetKind::Connection, self.config.connections)
            .map(Some)
    }

    /// Frees the memory of addresses that are no longer counted.
    pub fn upkeep(&self) {
        let mut addresses = self.addresses.lock();
        if addresses.is_empty() {
            return;
        }
        let now = Instant::now();
        addresses.retain(|_, account| !account.is_idle(now));
        if addresses.len() < addresses.capacity() / 4 {
            addresses.shrink_to_fit();
        }
    }

    fn count(
        self: &Arc<Self>,
        client: IpAddr,
        counted: BudgetKind,
        most: u32,
    ) -> Result<AddressPlace, Refusal> {
        let address = counting_key(client);
        let mut addresses = self.addresses.lock();
        let count = self
            .account(&mut addresses, address, Instant::now())
            .count(counted);
        if *count >= most {
            return Err(Refusal::TooManyConnections);
        }
        *count += 1;
        Ok(AddressPlace {
            budget: self.clone(),
            address,
            counted,
        })
    }

    fn account<'a>(
        &self,
        addresses: &'a mut HashMap<IpAddr, Account>,
        address: IpAddr,
        now: Instant,
    ) -> &'a mut Account {
        // A full map is swept before it doubles, so that the sweep's cost per new address is constant.
        if addresses.len() == addresses.capacity() {
            addresses.retain(|_, account| !account.is_idle(now));
        }
        let account = addresses
            .entry(address)
            .or_insert_with(|| Account::new(now));
        account.last = now;
        account
    }
}

impl Account {
    fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            handshakes: 0,
            bucket: Bucket::default(),
            last: now,
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.connections == 0 && self.handshakes == 0 && now.duration_since(self.last) > FORGET
    }

    fn count(&mut self, counted: BudgetKind) -> &mut u32 {
        match counted {
            BudgetKind::Connection => &mut self.connections,
            BudgetKind::Handshake => &mut self.handshakes,
        }
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        if let Some(account) = self.budget.addresses.lock().get_mut(&self.address) {
            let count = account.count(self.counted);
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn budgets() -> Arc<AddressBudgets> {
        AddressBudgets::new(config::PerAddress {
            connections: 1,
            handshakes: 1,
            connects_per_second: 1,
        })
    }

    /// Before, the table kept the room of its fullest moment: each client of IPv6 has as many addresses as it wants.
    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let budgets = budgets();
        let address = |number: u64| Ipv6Addr::from_bits(u128::from(number) << 64).into();
        let held = budgets.admit(address(1)).unwrap();
        for number in 2..10_000 {
            drop(budgets.admit(address(number)).unwrap());
        }
        budgets.upkeep();
        assert_eq!(budgets.addresses.lock().len(), 9_999, "their buckets count");
        for account in budgets.addresses.lock().values_mut() {
            account.last -= FORGET * 2;
        }
        budgets.upkeep();
        let addresses = budgets.addresses.lock();
        assert_eq!(addresses.len(), 1);
        assert!(addresses.capacity() < 100, "{}", addresses.capacity());
        drop(addresses);
        assert!(budgets.admit(address(1)).is_err(), "its socket is open");
        drop(held);
    }
}
