//! The positions with which sockets of a trial come back.

use std::collections::HashMap;

use anyhow::{Result, bail};

use crate::redis::{Link, Record, Reply};

/// The epochs of groups with history. The offset of a group is the number of events recorded so far: it was empty before.
#[derive(Default)]
pub(crate) struct Positions {
    epochs: HashMap<String, String>,
    /// The positions handed out.
    pub(crate) given: u64,
}

impl Positions {
    /// Returns the query of a socket that has had all but the last `missed` of the events `recorded` to a group; empty where
    /// the group has no events yet.
    pub(crate) fn since(
        &mut self,
        link: &mut Link,
        group: &str,
        recorded: u64,
        missed: u64,
    ) -> Result<String> {
        if !self.epochs.contains_key(group) {
            let Some(epoch) = epoch(link, group)? else {
                return Ok(String::new());
            };
            self.epochs.insert(group.to_owned(), epoch);
        }
        self.given += 1;
        let (epoch, offset) = (&self.epochs[group], recorded.saturating_sub(missed));
        Ok(format!("&since={group}~{epoch}~{offset}"))
    }
}

fn epoch(link: &mut Link, group: &str) -> Result<Option<String>> {
    let record = Record::to(&format!("bench__group__{group}"));
    let asked: [&[u8]; 3] = [b"HGET", record.position.as_bytes(), b"epoch"];
    match link.call(&asked)? {
        Reply::Text(epoch) => Ok(Some(String::from_utf8(epoch)?)),
        Reply::Nil => Ok(None),
        other => bail!("HGET answers {other:?}"),
    }
}
