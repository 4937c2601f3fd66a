//! Answers of replicas to commands, on `lockgate::reply:ID`.

use serde::{Deserialize, Serialize};

/// Bytes of the sockets in one answer. Paths are up to 16 KiB, so a page of a thousand sockets could be longer than what
/// a link carries. A page that ends sooner says so, and the caller asks for the rest.
pub const PAGE_BYTES: usize = 256 * 1024;
/// Bytes of the longest answer that is read: a page, and room for the other members.
pub const MAX_ANSWER: usize = 2 * PAGE_BYTES;

/// The answer of one replica. Members that the command does not ask for are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`](super::message::VERSION)
    pub v: u32,
    /// The id of the command.
    pub id: String,
    /// The id of the replica that answers.
    pub replica: String,
    /// Sockets that the command closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<u64>,
    /// Sockets that an event was queued for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<u64>,
    /// Sockets that joined or left a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// Sockets that have no room for another group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_limit: Option<u64>,
    /// Open sockets that the command was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<u64>,
    /// Open sockets of the tenant, or of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// A page of the open sockets, in the order of their channel names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketEntry>,
    /// True if this replica has sockets after those of the page. A version that does not know the member leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<bool>,
    /// Tenants of included files, and such files, that are not served as they stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<u64>,
    /// The reason why the command was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One open socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SocketEntry {
    /// The canonical id of its user; `null` for an anonymous socket.
    pub user_id: Option<String>,
    /// The name of its channel, which is valid within its tenant only.
    pub channel: String,
    /// The path of its request, without the query.
    pub path: String,
    /// Whole seconds since it was opened.
    pub age: u64,
}

impl Answer {
    /// Reads an answer; `None` if the bytes are none, or more than an answer may have.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX_ANSWER).then(|| serde_json::from_slice(bytes).ok())?
    }

    /// Puts a page into the answer: the first of `sockets`, up to [`PAGE_BYTES`]. `more` says that others come after all of
    /// them. One socket always fits.
    pub fn put_page(&mut self, mut sockets: Vec<SocketEntry>, more: bool) {
        let mut bytes = 0;
        let fits = |socket: &SocketEntry| {
            bytes += socket.bytes();
            bytes <= PAGE_BYTES
        };
        let fitting = sockets.iter().map(fits).take_while(|fits| *fits).count();
        let kept = fitting.max(1).min(sockets.len());
        self.more = Some(more || kept < sockets.len());
        sockets.truncate(kept);
        self.sockets = sockets;
    }

    /// Returns true if this replica has sockets after those of the answer. `limit` is the number that was asked for: a full
    /// page of a version that does not say so may have a next one.
    pub fn has_more(&self, limit: usize) -> bool {
        self.more.unwrap_or(self.sockets.len() >= limit)
    }
}

impl SocketEntry {
    /// The length of the entry as JSON.
    fn bytes(&self) -> usize {
        /// Counts what is written.
        struct Length(usize);

        impl std::io::Write for Length {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 += bytes.len();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let mut length = Length(1);
        match serde_json::to_writer(&mut length, self) {
            Ok(()) => length.0,
            Err(_) => usize::MAX / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(count: usize, path: usize) -> Vec<SocketEntry> {
        let socket = |number: usize| SocketEntry {
            user_id: Some("7".to_owned()),
            channel: format!("{number:032}"),
            path: format!("/{}", "\"".repeat(path)),
            age: 1,
        };
        (0..count).map(socket).collect()
    }

    /// 600 sockets with paths of 15.6 KB used to make an answer of 9.4 MB, which no link carries.
    #[test]
    fn a_page_ends_before_the_answer_is_too_long() {
        for (count, path) in [(600, 15_600), (1000, 100), (1000, 8_000), (1, 16_384)] {
            let mut answer = Answer::default();
            answer.put_page(sockets(count, path), false);
            let bytes = serde_json::to_vec(&answer).unwrap();
            assert!(bytes.len() <= MAX_ANSWER, "{count} {path}: {}", bytes.len());
            let kept = answer.sockets.len();
            assert!(
                kept > 0 && answer.more == Some(kept < count),
                "{count} {path}"
            );
            assert_eq!(Answer::read(&bytes), Some(answer));
        }
    }

    #[test]
    fn an_empty_page_has_no_next_one() {
        let mut answer = Answer::default();
        answer.put_page(Vec::new(), false);
        assert_eq!((answer.sockets.len(), answer.more), (0, Some(false)));
    }

    #[test]
    fn a_full_page_of_an_older_version_may_have_a_next_one() {
        let answer = |count| Answer {
            sockets: sockets(count, 1),
            ..Answer::default()
        };
        assert!(answer(5).has_more(5) && !answer(4).has_more(5));
    }
}
