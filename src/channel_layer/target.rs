//! Whom an event from a layer is for.

use crate::ids::GroupName;

/// The channel of one socket, by its 128 random bits; a layer knows what stands before them in the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketChannel(pub [u8; 16]);

impl SocketChannel {
    /// The channel's name: `prefix`, which the layer gives, and 32 hexadecimal digits.
    pub fn name(self, prefix: &str) -> String {
        format!("{prefix}{:032x}", u128::from_be_bytes(self.0))
    }

    /// The channel whose digits these are: 32 in lower case, as [`SocketChannel::name`] writes them.
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
    /// The payload says: [`ChannelLayer::open`](super::ChannelLayer::open) finds out.
    Inside,
    /// Those in a group.
    Group(GroupName),
    /// One socket, to whose own channel it was sent.
    Socket(SocketChannel),
    /// The sender went through the members of a group one by one (`core`), and named these.
    Members(Box<Members>),
}

/// Members of a group that are at home here; each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Groups that this replica joined as a whole.
    pub groups: Vec<GroupName>,
    /// Channels of single sockets, which a back end put into the group.
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
