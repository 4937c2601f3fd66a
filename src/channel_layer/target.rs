//! The recipients of an event from a layer.

use crate::ids::GroupName;

/// The channel of one socket, identified by 128 random bits. The layer knows the prefix of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketChannel(pub [u8; 16]);

impl SocketChannel {
    /// Returns the channel's name: the layer's `prefix` and 32 hexadecimal digits.
    pub fn name(self, prefix: &str) -> String {
        format!("{prefix}{:032x}", u128::from_be_bytes(self.0))
    }

    /// Reads the channel back from its digits: 32 in lower case, as [`SocketChannel::name`] writes them.
    pub fn of_digits(digits: &str) -> Option<Self> {
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != 32 || !digits.bytes().all(lower) {
            return None;
        }
        let random = u128::from_str_radix(digits, 16).ok()?;
        Some(Self(random.to_be_bytes()))
    }
}

/// The sockets that an event is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The payload names them: [`ChannelLayer::open`](super::ChannelLayer::open) reads it.
    Inside,
    /// The sockets in a group.
    Group(GroupName),
    /// One socket; the event was sent to its own channel.
    Socket(SocketChannel),
    /// Members of a group that the sender listed one by one (`core`).
    Members(Box<Members>),
}

/// Members of a group that live in this process, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Groups that this replica joined once, for all its sockets.
    pub groups: Vec<GroupName>,
    /// Channels of single sockets that a back end added to the group.
    pub sockets: Vec<SocketChannel>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_comes_back_from_its_digits() {
        let socket = SocketChannel([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        let name = socket.name("asgispecific.");
        assert_eq!(name, "asgispecific.000102030405060708090a0b0c0d0eff");
        let digits = name.strip_prefix("asgispecific.").unwrap();
        assert_eq!(SocketChannel::of_digits(digits), Some(socket));
        for other in [
            "",
            "0",
            &digits.to_uppercase(),
            &format!("+{}", &digits[1..]),
        ] {
            assert_eq!(SocketChannel::of_digits(other), None, "{other}");
        }
    }
}
