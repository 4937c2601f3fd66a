//! A list by age whose entries leave from any place in constant time.
//!
//! Those who hold something of bounded number stand in it: half-open connections, idle connections, unfinished messages.
//! The oldest goes first, and most leave by themselves. A map by time would cost a search for each.

/// The entries, oldest first. It takes memory for the most entries that it had since it was last empty.
#[derive(Debug)]
pub struct AgeList<T> {
    nodes: Vec<AgeNode<T>>,
    /// The first free node.
    free: u32,
    oldest: u32,
    newest: u32,
    len: usize,
    /// The number of entries that were ever added.
    added: u64,
}

#[derive(Debug)]
struct AgeNode<T> {
    /// `None` while the node is free.
    value: Option<T>,
    older: u32,
    /// The next newer node, or the next free one.
    newer: u32,
    /// The number of the entry, so that the ticket of an earlier entry of this node finds nothing.
    number: u64,
}

/// The place of an entry. It stays valid until the entry is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeTicket {
    node: u32,
    number: u64,
}

/// The index that stands for no node.
const NONE: u32 = u32::MAX;
/// Nodes that an empty list keeps.
const KEPT: usize = 1024;

impl<T> Default for AgeList<T> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: NONE,
            oldest: NONE,
            newest: NONE,
            len: 0,
            added: 0,
        }
    }
}

impl<T> AgeList<T> {
    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the newest entry.
    pub fn push(&mut self, value: T) -> AgeTicket {
        let node = match self.free {
            NONE => {
                self.nodes.push(AgeNode {
                    value: None,
                    older: NONE,
                    newer: NONE,
                    number: 0,
                });
                (self.nodes.len() - 1) as u32
            }
            free => {
                self.free = self.nodes[free as usize].newer;
                free
            }
        };
        self.added += 1;
        let number = self.added;
        self.nodes[node as usize] = AgeNode {
            value: Some(value),
            older: self.newest,
            newer: NONE,
            number,
        };
        match self.newest {
            NONE => self.oldest = node,
            newest => self.nodes[newest as usize].newer = node,
        }
        self.newest = node;
        self.len += 1;
        AgeTicket { node, number }
    }

    /// Returns the entry of a ticket; `None` if it was taken out.
    pub fn get_mut(&mut self, ticket: AgeTicket) -> Option<&mut T> {
        let node = self.nodes.get_mut(ticket.node as usize)?;
        node.value.as_mut().filter(|_| node.number == ticket.number)
    }

    /// Takes the entry of a ticket out; `None` if it was taken out before.
    pub fn take(&mut self, ticket: AgeTicket) -> Option<T> {
        self.get_mut(ticket)?;
        self.unlink(ticket.node)
    }

    /// Returns the oldest entry.
    pub fn oldest(&self) -> Option<&T> {
        self.nodes.get(self.oldest as usize)?.value.as_ref()
    }

    /// Takes the oldest entry out.
    pub fn pop_oldest(&mut self) -> Option<T> {
        self.unlink(self.oldest)
    }

    /// Returns the entries, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut at = self.oldest;
        std::iter::from_fn(move || {
            let node = self.nodes.get(at as usize)?;
            at = node.newer;
            node.value.as_ref()
        })
    }

    fn unlink(&mut self, at: u32) -> Option<T> {
        let node = self.nodes.get_mut(at as usize)?;
        let value = node.value.take()?;
        let (older, newer) = (node.older, node.newer);
        node.newer = self.free;
        self.free = at;
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        self.len -= 1;
        if self.len == 0 && self.nodes.len() > KEPT {
            // Frees the memory of a burst.
            self.nodes = Vec::new();
            self.free = NONE;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A step of the model: add an entry, take the entry of the n-th ticket out, or take the oldest out.
    #[derive(Clone, Debug)]
    enum ListStep {
        Push,
        Take(usize),
        Pop,
    }

    fn steps() -> impl Strategy<Value = Vec<ListStep>> {
        let step = prop_oneof![
            3 => Just(ListStep::Push),
            2 => (0..200_usize).prop_map(ListStep::Take),
            1 => Just(ListStep::Pop),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_list_holds(steps in steps()) {
            let (mut list, mut model) = (AgeList::default(), Vec::new());
            let mut tickets = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    ListStep::Push => {
                        tickets.push((list.push(number), number));
                        model.push(number);
                    }
                    ListStep::Take(at) if at < tickets.len() => {
                        let (ticket, value) = tickets[at];
                        let held = model.iter().position(|known| *known == value);
                        prop_assert_eq!(list.take(ticket), held.map(|at| model.remove(at)));
                    }
                    ListStep::Take(_) => {}
                    ListStep::Pop => {
                        let oldest = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(list.pop_oldest(), oldest);
                    }
                }
                prop_assert_eq!(list.iter().copied().collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(list.oldest(), model.first());
                prop_assert_eq!(list.len(), model.len());
            }
        }
    }

    #[test]
    fn the_memory_of_a_burst_is_freed_and_an_old_ticket_finds_nothing() {
        let mut list = AgeList::default();
        let tickets: Vec<_> = (0..10_000).map(|n| list.push(n)).collect();
        while list.pop_oldest().is_some() {}
        assert_eq!(list.nodes.capacity(), 0);
        let ticket = list.push(7);
        assert_eq!(list.take(tickets[0]), None);
        assert_eq!(list.take(ticket), Some(7));
    }
}
