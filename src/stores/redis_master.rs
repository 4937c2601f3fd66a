//! The current address of a Redis server: that of its URL, or the master's address from Sentinels.
//!
//! It replaces redis-rs' `SentinelClient`, whose connection does not follow a failover, and which checks the name in a
//! certificate or nothing of it.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::seq::IndexedRandom as _;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo,
    RedisError, RedisResult,
};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::redis_role::RoleQuestion;
use super::redis_stream::UNACKNOWLEDGED_LIMIT;
use super::redis_url::{RedisUrl, Sentinels};

/// The longest time for asking the Sentinels, and the server for its role.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// The longest time for which the first Sentinel that answers waits for the others.
const OTHERS_LIMIT: Duration = Duration::from_millis(500);
/// The number of questions to one Sentinel before another is chosen, which may know more.
const QUESTIONS: u32 = 5;

/// The connection to one of the Sentinels, kept for some questions.
#[derive(Default)]
pub(super) struct SentinelLink {
    open: Option<(MultiplexedConnection, u32)>,
}

/// The route to the server of a URL.
#[derive(Clone)]
pub(super) enum ServerRoute {
    /// The server has a fixed address.
    Fixed(Box<Client>),
    /// The Sentinels are asked for the address before every connection.
    Sentinel(Box<RedisUrl>),
}

impl ServerRoute {
    /// Makes the route of a URL.
    ///
    /// # Errors
    /// Fails if the URL asks for TLS and the system's certificates cannot be read.
    pub(super) fn new(url: &RedisUrl) -> RedisResult<Self> {
        if url.tls() {
            // The call fails if the process already has a provider; all of the crate's TLS uses aws-lc-rs.
            drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        }
        match url.address() {
            Some((host, port)) => {
                let client = client(url.connection_info(host, port)?)?;
                Ok(Self::Fixed(Box::new(client)))
            }
            None => Ok(Self::Sentinel(Box::new(url.clone()))),
        }
    }

    /// Returns the client of the current master.
    ///
    /// It asks all Sentinels at once and takes the answer of most of them: during a failover one may still name the old
    /// master, which goes on for some seconds. One that is down causes no delay. The server itself must confirm that it is
    /// a master (`ROLE`).
    pub(super) async fn client(&self) -> RedisResult<Client> {
        let url = match self {
            Self::Fixed(client) => return Ok((**client).clone()),
            Self::Sentinel(url) => url,
        };
        let Some(sentinels) = url.sentinels() else {
            return Err(late());
        };
        let mut asked: FuturesUnordered<_> = { sentinels.nodes.iter() }
            .map(|node| named_master(url, sentinels, node))
            .collect();
        let mut votes: Vec<(Client, usize)> = Vec::new();
        let (mut until, mut failure) = (Instant::now() + ASK_LIMIT, None);
        loop {
            let answer = tokio::select! {
                answer = asked.next() => answer,
                () = sleep_until(until) => None,
            };
            match answer {
                Some(Ok(client)) => {
                    if vote(&mut votes, client) * 2 > sentinels.nodes.len() {
                        break;
                    }
                    until = until.min(Instant::now() + OTHERS_LIMIT);
                }
                Some(Err(error)) => failure = Some(error),
                None => break,
            }
        }
        let named = votes.into_iter().max_by_key(|(_, count)| *count);
        named
            .map(|(client, _)| client)
            .ok_or_else(|| failure.unwrap_or_else(late))
    }

    /// Returns the master's address from one Sentinel; `None` if the URL has no Sentinels.
    ///
    /// It needs one connection, where [`ServerRoute::client`] needs several, so it can be called regularly.
    pub(super) async fn hearsay(
        &self,
        link: &mut SentinelLink,
    ) -> Option<RedisResult<(String, u16)>> {
        let Self::Sentinel(url) = self else {
            return None;
        };
        let sentinels = url.sentinels()?;
        let kept = link.open.take();
        let ask = async {
            let (mut connection, questions) = match kept {
                Some((connection, left)) => (connection, left),
                None => {
                    let node = sentinels.nodes.choose(&mut rand::rng());
                    let node = node.ok_or_else(late)?;
                    (sentinel(url, sentinels, node).await?, QUESTIONS)
                }
            };
            let answer = master_address(&mut connection, sentinels).await?;
            Ok((answer, connection, questions - 1))
        };
        let asked = timeout(ASK_LIMIT, ask).await;
        let asked = asked.unwrap_or_else(|_| Err(late()));
        Some(asked.map(|(answer, connection, questions)| {
            link.open = (questions > 0).then_some((connection, questions));
            answer
        }))
    }

    /// Returns true if the address of the server can change.
    pub(super) fn moves(&self) -> bool {
        matches!(self, Self::Sentinel(_))
    }
}

fn late() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// Connects to one Sentinel.
async fn sentinel(
    url: &RedisUrl,
    sentinels: &Sentinels,
    (host, port): &(String, u16),
) -> RedisResult<MultiplexedConnection> {
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(username) = &sentinels.login.username {
        login = login.set_username(username);
    }
    if let Some(password) = &sentinels.login.password {
        login = login.set_password(password.expose());
    }
    let info = url.node_address(host, *port)?.into_connection_info()?;
    let client = client(info.set_redis_settings(login))?;
    client.get_multiplexed_async_connection().await
}

/// Counts one Sentinel's answer. Returns the number of Sentinels that name the same server.
fn vote(votes: &mut Vec<(Client, usize)>, client: Client) -> usize {
    let same = |other: &Client| address(other) == address(&client);
    if let Some((_, count)) = votes.iter_mut().find(|(other, _)| same(other)) {
        *count += 1;
        return *count;
    }
    votes.push((client, 1));
    1
}

/// Returns the host and port of a client.
pub(super) fn address(client: &Client) -> Option<(&str, u16)> {
    match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

/// Asks one Sentinel for the master, and that server for its role. A login that may not ask for the role is believed.
async fn named_master(
    url: &RedisUrl,
    sentinels: &Sentinels,
    node: &(String, u16),
) -> RedisResult<Client> {
    let mut connection = sentinel(url, sentinels, node).await?;
    let (host, port) = master_address(&mut connection, sentinels).await?;
    let master = client(url.connection_info(&host, port)?)?;
    let mut connection = master.get_multiplexed_async_connection().await?;
    let mut role = RoleQuestion::default();
    role.demand_master(&mut connection).await?;
    Ok(master)
}

/// Asks a Sentinel for the address of the master. One that does not know the name is an error.
async fn master_address(
    connection: &mut MultiplexedConnection,
    sentinels: &Sentinels,
) -> RedisResult<(String, u16)> {
    let mut command = redis::cmd("SENTINEL");
    let command = command.arg("GET-MASTER-ADDR-BY-NAME");
    let known: Option<(String, u16)> = { command.arg(&sentinels.master) }
        .query_async(connection)
        .await?;
    known.ok_or_else(|| {
        let text = format!("the Sentinel knows no master {:?}", sentinels.master);
        std::io::Error::other(text).into()
    })
}

/// Returns a client with the socket options of every link.
fn client(info: ConnectionInfo) -> RedisResult<Client> {
    let login = info.redis_settings().clone().set_skip_set_lib_name();
    Client::open(info.set_tcp_settings(tcp()).set_redis_settings(login))
}

fn tcp() -> TcpSettings {
    TcpSettings::default()
        .set_nodelay(true)
        .set_user_timeout(UNACKNOWLEDGED_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinels_that_name_the_same_server_are_counted_together() {
        let mut votes = Vec::new();
        for (port, count) in [(1, 1), (2, 1), (2, 2), (1, 2), (2, 3)] {
            let client = Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
            assert_eq!(vote(&mut votes, client), count, "{port}");
        }
        assert_eq!(votes.len(), 2);
    }
}
