//! The items that wait for one socket, in order.
//!
//! An idle socket has none and most others one, which needs no memory of its own. An empty `VecDeque` would take 32 bytes in
//! each socket, and its first item another 64.

use std::collections::VecDeque;

use super::Item;

/// The items, the oldest first.
#[derive(Debug, Default)]
pub(super) enum ItemQueue {
    #[default]
    Empty,
    One(Item),
    /// Possibly empty, so that a busy socket keeps its memory.
    #[expect(
        clippy::box_collection,
        reason = "unboxed it would take 32 bytes in each socket"
    )]
    Many(Box<VecDeque<Item>>),
}

impl ItemQueue {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(_) => 1,
            Self::Many(items) => items.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn front(&self) -> Option<&Item> {
        match self {
            Self::Empty => None,
            Self::One(item) => Some(item),
            Self::Many(items) => items.front(),
        }
    }

    pub(super) fn push_back(&mut self, item: Item) {
        match self {
            Self::Empty => *self = Self::One(item),
            Self::One(_) => self.many().push_back(item),
            Self::Many(items) => items.push_back(item),
        }
    }

    pub(super) fn push_front(&mut self, item: Item) {
        match self {
            Self::Empty => *self = Self::One(item),
            Self::One(_) => self.many().push_front(item),
            Self::Many(items) => items.push_front(item),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Item> {
        if let Self::Many(items) = self {
            return items.pop_front();
        }
        match std::mem::take(self) {
            Self::One(item) => Some(item),
            Self::Empty | Self::Many(_) => None,
        }
    }

    /// Frees the memory if no item is left.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            *self = Self::Empty;
        }
    }

    /// Returns the items in a form with room for more.
    fn many(&mut self) -> &mut VecDeque<Item> {
        if !matches!(self, Self::Many(_)) {
            let mut items = Box::<VecDeque<Item>>::default();
            items.extend(self.pop_front());
            *self = Self::Many(items);
        }
        match self {
            Self::Many(items) => items,
            Self::Empty | Self::One(_) => unreachable!("it was replaced above"),
        }
    }
}

impl Extend<Item> for ItemQueue {
    fn extend<T: IntoIterator<Item = Item>>(&mut self, items: T) {
        items.into_iter().for_each(|item| self.push_back(item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;

    fn item(text: &str) -> Item {
        Item::Frame(Frame::text(text))
    }

    fn texts(queue: &mut ItemQueue) -> String {
        let texts = std::iter::from_fn(|| queue.pop_front()).map(|item| match item {
            Item::Frame(frame) => String::from_utf8_lossy(&frame.as_bytes()[2..]).into_owned(),
            Item::Event(_) => unreachable!("no test queues one"),
        });
        texts.collect()
    }

    #[test]
    fn items_keep_their_order_in_every_form() {
        let mut queue = ItemQueue::default();
        assert!(queue.is_empty() && queue.front().is_none() && queue.pop_front().is_none());
        queue.push_front(item("b"));
        assert_eq!((queue.len(), size_of::<ItemQueue>()), (1, 16));
        queue.push_front(item("a"));
        queue.extend([item("c"), item("d")]);
        assert_eq!((queue.len(), texts(&mut queue)), (4, "abcd".to_owned()));
        // It keeps its room until it rests, and loses no item by resting.
        queue.push_back(item("e"));
        queue.rest();
        assert_eq!(texts(&mut queue), "e");
        queue.rest();
        assert!(matches!(queue, ItemQueue::Empty));
    }
}
