//! Opens a subscriber or reading connection: TCP, TLS where the URL says so, login, name. Each step has a deadline.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use redis::RedisError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::config::Secret;
use crate::error::{ErrorKind, StoreError};
use crate::stores::redis::{RedisStore, RedisUrl, error_kind};
use crate::stores::redis_answer::NotResp;
use crate::stores::redis_stream::{Stream, connect, encrypted};

use super::command::write_command;
use super::resp::{Parser, RespReply};

/// Time limit for each step: the TCP connection with its name look-up, TLS, and the login.
const STEP_LIMIT: Duration = Duration::from_secs(1);

/// The reason why a connection failed or ended.
#[derive(Debug)]
pub(in crate::channel_layer) struct LinkError {
    pub(in crate::channel_layer) kind: ErrorKind,
    /// The text of the system or the server; holds no secret.
    pub(in crate::channel_layer) text: String,
}

impl LinkError {
    pub(in crate::channel_layer) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, text }
    }

    /// The server is a replica.
    pub(in crate::channel_layer) fn demoted() -> Self {
        let text =
            "the server is a replica: a subscriber would miss what its master does not pass on";
        Self::new(ErrorKind::Other, text)
    }

    /// Reads an error reply of the server.
    pub(in crate::channel_layer) fn of_reply(reply: &[u8]) -> Self {
        Self::new(kind_of_reply(reply), String::from_utf8_lossy(reply))
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        Self::new(error_kind(&error), error.to_string())
    }
}

impl From<StoreError> for LinkError {
    fn from(error: StoreError) -> Self {
        Self::new(error.kind, error.to_string())
    }
}

impl From<NotResp> for LinkError {
    fn from(error: NotResp) -> Self {
        Self::new(ErrorKind::Protocol, error.to_string())
    }
}

/// Returns the kind of an error reply, by the code that it begins with.
pub(in crate::channel_layer) fn kind_of_reply(reply: &[u8]) -> ErrorKind {
    match reply.split(|byte| *byte == b' ').next() {
        Some(b"NOPERM") => ErrorKind::Permission,
        Some(b"NOAUTH" | b"WRONGPASS") => ErrorKind::Auth,
        _ if reply.starts_with(b"ERR unknown command") => ErrorKind::Protocol,
        _ => ErrorKind::Other,
    }
}

/// Connects to the server's present address, logs in and names the connection `name`. No reply is left unread.
pub(in crate::channel_layer) async fn dial(
    store: &RedisStore,
    name: &str,
) -> Result<Box<dyn Stream>, LinkError> {
    let url = store.url();
    let (host, port) = store.address().await?;
    let tcp = in_time("connect", connect(&host, port)).await??;
    let mut stream: Box<dyn Stream> = if url.tls() {
        let settings = store
            .tls()
            .map_err(|error| LinkError::new(ErrorKind::Other, error.to_string()))?;
        in_time("TLS handshake", encrypted(settings, &host, tcp)).await??
    } else {
        Box::new(tcp)
    };
    in_time("login", log_in(&mut stream, url, name)).await??;
    Ok(stream)
}

async fn in_time<F: Future>(step: &str, future: F) -> Result<F::Output, LinkError> {
    let late = |_| {
        let text = format!("no answer to {step} within {STEP_LIMIT:?}");
        LinkError::new(ErrorKind::Timeout, text)
    };
    timeout(STEP_LIMIT, future).await.map_err(late)
}

/// Sends AUTH, CLIENT SETNAME, PING and ROLE in one write and reads their replies.
async fn log_in(stream: &mut Box<dyn Stream>, url: &RedisUrl, name: &str) -> Result<(), LinkError> {
    let mut out = BytesMut::new();
    let password = url.password().map(Secret::expose);
    if let Some(password) = password {
        let login = [Some("AUTH"), url.username(), Some(password)];
        let login = login.into_iter().flatten().map(str::as_bytes);
        write_command(login, &mut out);
    }
    let naming = ["CLIENT", "SETNAME", name].into_iter().map(str::as_bytes);
    write_command(naming, &mut out);
    write_command([&b"PING"[..]].into_iter(), &mut out);
    write_command([&b"ROLE"[..]].into_iter(), &mut out);
    stream.write_all(&out).await?;
    stream.flush().await?;

    let (mut input, mut parser) = (BytesMut::with_capacity(1024), Parser::default());
    if password.is_some()
        && let Err(refusal) = answer(stream, &mut input, &mut parser).await?
    {
        // A failed AUTH is about the credentials, whatever its text: a server that has no password set, for one, answers
        // with a plain ERR.
        return Err(LinkError::new(ErrorKind::Auth, refusal.text));
    }
    // A user may lack the right to name itself and still subscribe, and a server that loads its data takes subscribers, so
    // these refusals pass. A server that is about to hang up gives its reason in the first reply, so that one is returned.
    let named = answer(stream, &mut input, &mut parser).await?;
    let alive = answer(stream, &mut input, &mut parser).await;
    match (named, alive) {
        (Err(refusal), Err(_)) => Err(refusal),
        (_, Err(error)) => Err(error),
        (Err(refusal), _) | (_, Ok(Err(refusal))) if refusal.kind == ErrorKind::Auth => {
            Err(refusal)
        }
        // A login without the right to ask for the role relies on the command link.
        _ => match answer(stream, &mut input, &mut parser).await? {
            Ok(LoginReply::Replica) => Err(LinkError::demoted()),
            _ => Ok(()),
        },
    }
}

/// A reply to the login.
enum LoginReply {
    /// The server says that it is a replica.
    Replica,
    Other,
}

/// Reads the next reply. The outer error is the connection's, the inner one the server's.
async fn answer(
    stream: &mut Box<dyn Stream>,
    input: &mut BytesMut,
    parser: &mut Parser,
) -> Result<Result<LoginReply, LinkError>, LinkError> {
    loop {
        let (reply, used) = match parser.next(input) {
            Ok((Some(RespReply::Error(text)), used)) => {
                (Some(Err(LinkError::of_reply(text))), used)
            }
            Ok((Some(RespReply::Replica), used)) => (Some(Ok(LoginReply::Replica)), used),
            Ok((Some(_), used)) => (Some(Ok(LoginReply::Other)), used),
            Ok((None, used)) => (None, used),
            Err(error) => return Err(LinkError::new(ErrorKind::Protocol, error.to_string())),
        };
        input.advance(used);
        if let Some(reply) = reply {
            return Ok(reply);
        }
        if stream.read_buf(input).await? == 0 {
            let text = "the server closed the connection";
            return Err(LinkError::new(ErrorKind::Io, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that a server does not know was told as a missing right.
    #[test]
    fn the_kind_of_a_reply_tells_a_right_from_a_command_that_is_not_known() {
        for (reply, kind) in [
            (
                "NOPERM User a has no permissions to run the 'ssubscribe' command",
                ErrorKind::Permission,
            ),
            ("WRONGPASS invalid username-password pair", ErrorKind::Auth),
            (
                "ERR unknown command `SSUBSCRIBE`, with args beginning with: `a`,",
                ErrorKind::Protocol,
            ),
            (
                "ERR unknown command 'SSUBSCRIBE', with args beginning with: 'a'",
                ErrorKind::Protocol,
            ),
            ("LOADING Redis is loading the dataset", ErrorKind::Other),
        ] {
            assert_eq!(kind_of_reply(reply.as_bytes()), kind, "{reply}");
        }
    }
}
