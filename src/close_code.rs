//! The table of close codes and reasons; clients, logs and metrics share it.
//!
//! Codes 4000-4499 tell a client to reconnect, codes 4500-4999 tell it not to. A code that an application or a
//! client chose passes through as a [`CloseFrame`] and has no [`CloseReason`].

use std::borrow::Cow;
use std::time::Duration;

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal $label:literal),* $(,)?) => {
        /// A reason for which the gateway itself closes a socket.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseReason { $($(#[$doc])* $name),* }

        impl CloseReason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [CloseReason] = &[$(CloseReason::$name),*];

            /// Returns the code in the close frame (RFC 6455 §7.4).
            pub const fn code(self) -> u16 {
                match self { $(Self::$name => $code),* }
            }

            /// Returns the stable word in the close frame, the logs and the `reason` label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }
        }
    };
}

close_reasons! {
    /// The socket ended as agreed.
    Normal = 1000 "normal",
    /// The peer broke RFC 6455.
    ProtocolError = 1002 "protocol_error",
    /// A frame came where the route takes none.
    UnsupportedData = 1003 "unsupported_data",
    /// A text message was not UTF-8.
    PayloadNotValid = 1007 "payload_not_valid",
    /// A message was not complete within `server.message_timeout` of its beginning.
    MessageTimeout = 1008 "message_timeout",
    /// A message was larger than `message_size`.
    MessageTooBig = 1009 "message_too_big",
    /// A consumer failed, or an application chose a code that must not be sent.
    InternalError = 1011 "internal_error",
    /// This replica is about to exit, or the route changed.
    Draining = 1012 "draining",
    /// The socket reached `server.max_age`.
    MaxAge = 1012 "max_age",
    /// The token's `exp` plus leeway has passed.
    TokenExpired = 4001 "token_expired",
    /// Events may be missing, and the tenant has `on_gap = "close"`.
    EventsLost = 4004 "events_lost",
    /// More bytes than `send_queue` wait for the socket, and it takes too few of them.
    TooSlow = 4008 "too_slow",
    /// The client did not answer a ping in time.
    PongTimeout = 4009 "pong_timeout",
    /// The socket exceeded `messages_per_second` or `publishes_per_second`.
    RateLimited = 4013 "rate_limited",
    /// A dependency does not answer.
    Unavailable = 4014 "unavailable",
    /// The tenant has as many sockets as `connections` allows.
    TooManyConnections = 4015 "too_many_connections",
    /// The tenant was suspended.
    TenantSuspended = 4016 "tenant_suspended",
    /// The tenant is no longer configured.
    TenantNotFound = 4017 "tenant_not_found",
    /// The route is no longer configured.
    RouteNotFound = 4018 "route_not_found",
    /// The token was refused.
    TokenNotValid = 4500 "token_not_valid",
    /// The token, its user or its tenant was revoked.
    TokenRevoked = 4501 "token_revoked",
    /// The user is not active.
    UserInactive = 4502 "user_inactive",
    /// The page's origin is not on the tenant's list.
    OriginNotAllowed = 4504 "origin_not_allowed",
    /// The route's consumer does not take this frame.
    MessageNotValid = 4505 "message_not_valid",
    /// A newer socket of the same user took this one's place.
    Replaced = 4506 "replaced",
    /// The user may not join the route's groups, or no longer may.
    GroupForbidden = 4507 "group_forbidden",
    /// An operator closed the socket.
    Disconnected = 4508 "disconnected",
    /// The user is unknown.
    UserNotFound = 4509 "user_not_found",
    /// The password changed since the token was made.
    PasswordChanged = 4510 "password_changed",
    /// The request carried no token.
    TokenMissing = 4512 "token_missing",
    /// A group name made from path, user or claims is not valid in Channels.
    GroupNameNotValid = 4513 "group_name_not_valid",
    /// The user has as many sockets as `connections_per_user` allows.
    TooManyUserConnections = 4514 "too_many_connections",
}

impl CloseReason {
    /// Returns the frame with this reason's code and word.
    pub fn frame(self) -> CloseFrame {
        CloseFrame {
            code: self.code(),
            reason: Cow::Borrowed(self.label()),
            cause: Some(self),
        }
    }

    /// Returns true if waiting helps a client before it reconnects.
    ///
    /// It helps where something is busy, down or suspended for a while, and where many sockets close together. It does not
    /// help against an expired token, because the client needs a new one, and not where a tenant or a route is gone. It does
    /// not help after a missing pong either: the network path is broken, and the client should look for another one at once.
    const fn waiting_helps(self) -> bool {
        matches!(
            self,
            Self::Draining
                | Self::MaxAge
                | Self::EventsLost
                | Self::TooSlow
                | Self::RateLimited
                | Self::Unavailable
                | Self::TooManyConnections
                | Self::TenantSuspended
        )
    }

    /// Returns the time that a client should wait before it reconnects; `None` where waiting does not help, and for a drain
    /// and `server.max_age`, which choose a separate wait for each socket.
    pub const fn wait(self) -> Option<Duration> {
        match self {
            Self::Draining | Self::MaxAge => None,
            _ if self.waiting_helps() => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Returns the frame with the wait of [`CloseReason::wait`], if there is one.
    pub fn frame_with_wait(self) -> CloseFrame {
        match self.wait() {
            Some(wait) => self.frame_with_retry(wait),
            None => self.frame(),
        }
    }

    /// Returns the frame with a wait that the client should keep before it reconnects.
    ///
    /// The wait is [`CloseReason::wait`], or one that the caller spreads over many sockets. The frame has none where waiting
    /// does not help.
    pub fn frame_with_retry(self, retry_after: Duration) -> CloseFrame {
        if !self.waiting_helps() {
            return self.frame();
        }
        let reason = format!(
            "{} retry_after_ms={}",
            self.label(),
            retry_after.as_millis()
        );
        CloseFrame {
            reason: Cow::Owned(reason),
            ..self.frame()
        }
    }
}

/// The most bytes of a close reason: a control frame holds 125, two of them the code (RFC 6455 §5.5).
pub const MAX_REASON: usize = 123;

/// True for the codes that an application may send.
const fn is_applications(code: i64) -> bool {
    matches!(code, 1000 | 3000..=4999)
}

/// A close that an operator or a back end asks for. The code is 4508 and the reason `disconnected` unless it says
/// otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedClose {
    code: Option<u16>,
    reason: Option<String>,
}

/// The part of a requested close that may not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseNotValid {
    /// The code is none of 1000, 1012 and 3000-4999.
    #[error("code")]
    Code,
    /// The reason has over [`MAX_REASON`] bytes.
    #[error("reason")]
    Reason,
}

impl RequestedClose {
    /// Makes the close with this code and reason.
    ///
    /// # Errors
    /// [`CloseNotValid`]
    pub fn new(code: Option<u16>, reason: Option<String>) -> Result<Self, CloseNotValid> {
        let is_drain = |code| code == CloseReason::Draining.code();
        if code.is_some_and(|code| !is_drain(code) && !is_applications(code.into())) {
            return Err(CloseNotValid::Code);
        }
        if reason.as_ref().is_some_and(|text| text.len() > MAX_REASON) {
            return Err(CloseNotValid::Reason);
        }
        Ok(Self { code, reason })
    }

    /// Returns the code that is asked for.
    pub fn code(&self) -> Option<u16> {
        self.code
    }

    /// Returns the reason that is asked for.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns the frame that closes a socket.
    pub fn frame(&self) -> CloseFrame {
        let default = CloseReason::Disconnected;
        let code = self.code.unwrap_or(default.code());
        CloseFrame {
            code,
            reason: match &self.reason {
                Some(reason) => Cow::Owned(reason.clone()),
                None => Cow::Borrowed(default.label()),
            },
            // The text is the caller's; the cause follows the code, which the caller may have chosen too.
            cause: (code == default.code()).then_some(default),
        }
    }
}

/// The content of a close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    /// The close code. 1005 means a close frame without a code and 1006 means no close frame; neither is ever sent.
    pub code: u16,
    /// The reason, at most 123 bytes (RFC 6455 §5.5).
    pub reason: Cow<'static, str>,
    /// The gateway's own reason; `None` if an application or a client sent the frame.
    pub cause: Option<CloseReason>,
}

impl CloseFrame {
    /// Returns the frame of a close that an application asks for.
    ///
    /// The codes 1000 and 3000-4999 pass unchanged, any other becomes 1011. A reason over 123 bytes is cut at the end
    /// of a character.
    pub fn from_application(code: Option<i64>, reason: &str) -> Self {
        let code = match code {
            None => 1000,
            Some(code) if is_applications(code) => code as u16,
            Some(_) => return CloseReason::InternalError.frame(),
        };
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        CloseFrame {
            code,
            reason: Cow::Owned(reason[..end].to_owned()),
            cause: None,
        }
    }

    /// Returns the frame that stands for a connection without any close frame (1006).
    pub fn absent() -> Self {
        CloseFrame {
            code: 1006,
            reason: Cow::Borrowed(""),
            cause: None,
        }
    }

    /// Returns the `code` and `reason` labels of `lockgate_disconnects_total`, which are a closed set.
    pub fn labels(&self) -> (&'static str, &'static str) {
        if let Some(cause) = self.cause {
            return (code_label(self.code), cause.label());
        }
        match self.code {
            1001 => ("1001", "client"),
            1005 => ("1005", "client"),
            1006 => ("1006", "client"),
            // Applications choose codes from 3000 on. These keep the label "other" even where the table has the
            // same code, so that the label of a gateway's reason never counts an application's close. So do 1008 and 1012,
            // whose words tell of a gateway alone: a message that it did not get in time, a replica that exits.
            1008 | 1012 | 3000.. => ("other", "other"),
            code => match CloseReason::ALL.iter().find(|known| known.code() == code) {
                Some(known) => (code_label(code), known.label()),
                None => ("other", "other"),
            },
        }
    }
}

/// Returns the code as a label if the table has it, and `other` if not.
fn code_label(code: u16) -> &'static str {
    macro_rules! labels { ($($code:literal),*) => { match code { $($code => stringify!($code),)* _ => "other" } }; }
    labels!(
        1000, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 4001, 4004, 4008, 4009, 4013, 4014, 4015,
        4016, 4017, 4018, 4500, 4501, 4502, 4504, 4505, 4506, 4507, 4508, 4509, 4510, 4512, 4513,
        4514
    )
}

/// Returns true if a peer may send the code in a close frame (RFC 6455 §7.4, IANA's registry).
pub const fn may_be_received(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_code_and_fits_a_frame() {
        for reason in CloseReason::ALL {
            assert_eq!(code_label(reason.code()), reason.code().to_string());
            assert!(
                reason
                    .frame_with_retry(Duration::from_secs(86_400))
                    .reason
                    .len()
                    <= MAX_REASON
            );
        }
    }

    #[test]
    fn only_reasons_that_ask_for_a_reconnect_name_a_wait() {
        let wait = Duration::from_millis(250);
        assert_eq!(
            CloseReason::Draining.frame_with_retry(wait).reason,
            "draining retry_after_ms=250"
        );
        assert_eq!(
            CloseReason::TokenRevoked.frame_with_retry(wait).reason,
            "token_revoked"
        );
        // A tenant or a route that was removed does not come back by waiting.
        for gone in [CloseReason::TenantNotFound, CloseReason::RouteNotFound] {
            assert_eq!(gone.frame_with_retry(wait).reason, gone.label());
        }
    }

    #[test]
    fn a_wait_is_named_where_waiting_helps() {
        for reason in CloseReason::ALL {
            let reconnects = matches!(reason.code(), 1012 | 4000..=4499);
            assert!(!reason.waiting_helps() || reconnects, "{reason:?}");
        }
        let told = |reason: CloseReason| reason.frame_with_wait().reason.into_owned();
        assert_eq!(
            told(CloseReason::Unavailable),
            "unavailable retry_after_ms=1000"
        );
        assert_eq!(told(CloseReason::PongTimeout), "pong_timeout");
        assert_eq!(told(CloseReason::TokenExpired), "token_expired");
        assert_eq!(told(CloseReason::MaxAge), "max_age");
    }

    #[test]
    fn an_application_may_send_1000_and_3000_to_4999() {
        for (asked, sent) in [
            (None, 1000),
            (Some(1000), 1000),
            (Some(4403), 4403),
            (Some(1), 1011),
            (Some(1006), 1011),
        ] {
            assert_eq!(CloseFrame::from_application(asked, "").code, sent);
        }
        let long = CloseFrame::from_application(Some(4000), &"é".repeat(100));
        assert_eq!(long.reason.len(), 122);
    }

    #[test]
    fn labels_are_a_closed_set() {
        assert_eq!(CloseFrame::absent().labels(), ("1006", "client"));
        assert_eq!(
            CloseFrame::from_application(Some(4403), "x").labels(),
            ("other", "other")
        );
        assert_eq!(
            CloseFrame::from_application(Some(4501), "x").labels(),
            ("other", "other")
        );
        assert_eq!(
            CloseFrame::from_application(Some(1000), "x").labels(),
            ("1000", "normal")
        );
        assert_eq!(
            CloseReason::TokenRevoked.frame().labels(),
            ("4501", "token_revoked")
        );
    }

    /// A text or the code 4508 made the close of an operator one of `other`, and 1012 one of a drain.
    #[test]
    fn a_requested_close_counts_by_its_code() {
        let labels = |code, reason: Option<&str>| {
            let close = RequestedClose::new(code, reason.map(str::to_owned)).unwrap();
            close.frame().labels()
        };
        let disconnected = ("4508", "disconnected");
        assert_eq!(labels(None, None), disconnected);
        assert_eq!(labels(None, Some("bye")), disconnected);
        assert_eq!(labels(Some(4508), Some("bye")), disconnected);
        assert_eq!(labels(Some(1000), None), ("1000", "normal"));
        for code in [1012, 3000, 4501] {
            assert_eq!(labels(Some(code), None), ("other", "other"), "{code}");
        }
    }

    /// A client's own 1008 was counted as a message that did not come in time, and its 1012 as a drain.
    #[test]
    fn a_clients_close_has_no_word_that_tells_of_the_gateway() {
        let labels = |code| {
            let received = CloseFrame {
                code,
                ..CloseFrame::absent()
            };
            received.labels()
        };
        for code in [1008, 1010, 1012, 1013, 1014, 4001] {
            assert_eq!(labels(code), ("other", "other"), "{code}");
        }
        assert_eq!(labels(1001), ("1001", "client"));
        assert_eq!(labels(1007), ("1007", "payload_not_valid"));
        let own = CloseReason::MessageTimeout.frame();
        assert_eq!(own.labels(), ("1008", "message_timeout"));
    }
}
