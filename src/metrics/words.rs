//! The values of labels.

use crate::labels::labels;

labels! {
    /// The source of an event.
    pub enum EventSource {
        Layer = "layer",
        Api = "api",
        Socket = "socket",
    }

    /// The reason why an event or a frame was dropped.
    pub enum DropCause {
        NotDecoded = "not_decoded",
        NotRendered = "not_rendered",
        NotValid = "not_valid",
        NoConsumer = "no_consumer",
        WorkerFull = "worker_full",
        Limit = "limit",
    }

    /// The reason why a message of a control channel, or its answer, was dropped.
    pub enum ControlDrop {
        Rate = "rate",
        Queue = "queue",
        Answers = "answers",
    }

    /// The cause of a gap in the stream of events.
    pub enum GapCause {
        Link = "link",
        LayerQueue = "layer_queue",
        Canary = "canary",
        History = "history",
    }

    /// The outcome for a socket that came back for the events which it missed.
    pub enum RecoveryResult {
        Recovered = "recovered",
        TooOld = "too_old",
        Epoch = "epoch",
        Error = "error",
    }

    /// The kind of a frame from a client.
    pub enum FrameKind {
        Text = "text",
        Binary = "binary",
        Ping = "ping",
        Pong = "pong",
        Close = "close",
    }

    /// The source of a user record.
    pub enum LookupResult {
        Local = "local",
        Redis = "redis",
        Database = "database",
        Stale = "stale",
        Negative = "negative",
        Error = "error",
    }

    /// The progress of a handshake.
    pub enum HandshakeStage {
        /// The client has sent nothing.
        Silent = "silent",
        /// A part of the request has come.
        Head = "head",
        /// The request has come, and its token is not verified yet.
        Unverified = "unverified",
        /// The token is verified; stores are asked, and the socket is opened.
        Answering = "answering",
        /// The refusal is sent; the client has not closed.
        Answered = "answered",
    }

    /// A step of the authentication that is timed.
    pub enum AuthStep {
        Token = "token",
        Denylist = "denylist",
        User = "user",
        Authorize = "authorize",
        Join = "join",
    }

    /// The tokens that a revocation takes back.
    pub(super) enum RevocationKind {
        Jti = "jti",
        User = "user",
        Tenant = "tenant",
    }
}

impl From<&crate::ids::RevocationTarget> for RevocationKind {
    fn from(target: &crate::ids::RevocationTarget) -> Self {
        use crate::ids::RevocationTarget;
        match target {
            RevocationTarget::Token(_) => Self::Jti,
            RevocationTarget::User(..) => Self::User,
            RevocationTarget::All(_) => Self::Tenant,
        }
    }
}
