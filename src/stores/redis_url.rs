//! The address of a Redis server and the login. Passwords cannot be printed.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use crate::config::{Secret, Trust, Verify};

pub use parse::RedisUrlError;

mod parse;
mod tls_settings;

/// The address of a Redis server and the login.
///
/// * `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS;
/// * `redis+sentinel://[user:password@]host[:port],…/NAME[/db]`, `rediss+sentinel://` for TLS to Sentinels and servers: the
///   master that the Sentinels call NAME. The login is that of the servers. If the Sentinels ask for one, it follows as
///   `?sentinel_username=…&sentinel_password=…`;
/// * `redis+cluster://[user:password@]host[:port],…`, `rediss+cluster://` for TLS: the cluster that these nodes belong to.
///
/// `Display` prints addresses and NAME only.
#[derive(Clone)]
pub struct RedisUrl {
    server: ServerAddress,
    tls: bool,
    login: Login,
    db: i64,
    trust: Trust,
}

/// The user and the password for a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

#[derive(Clone, PartialEq, Eq)]
enum ServerAddress {
    At(String, u16),
    Sentinel(Sentinels),
    /// Host and port of some nodes of a cluster, in order.
    Cluster(Vec<(String, u16)>),
}

/// The Sentinels that know where a master is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sentinels {
    /// Host and port of each, in the URL's order.
    pub(super) nodes: Vec<(String, u16)>,
    /// The name of the master on the Sentinels.
    pub(super) master: String,
    /// Their own login, not the master's.
    pub(super) login: Login,
}

impl RedisUrl {
    /// Sets the trust in the certificate of the server, and of Sentinels. A parsed URL has the default trust.
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Returns the trust in the certificate of the server.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Returns true if the link is encrypted and the certificate of the server is not checked.
    pub fn is_unchecked(&self) -> bool {
        self.tls && self.trust.verify == Some(Verify::Nothing)
    }

    /// Returns host and port; `None` if Sentinels or the nodes of a cluster are asked for them.
    pub fn address(&self) -> Option<(&str, u16)> {
        match &self.server {
            ServerAddress::At(host, port) => Some((host, *port)),
            ServerAddress::Sentinel(_) | ServerAddress::Cluster(_) => None,
        }
    }

    /// Returns true if the URL names a cluster.
    pub fn is_cluster(&self) -> bool {
        self.seeds().is_some()
    }

    /// Returns the nodes that are asked for the other nodes of a cluster.
    pub(super) fn seeds(&self) -> Option<&[(String, u16)]> {
        match &self.server {
            ServerAddress::Cluster(seeds) => Some(seeds),
            ServerAddress::At(..) | ServerAddress::Sentinel(_) => None,
        }
    }

    /// Returns the URL of one node of the cluster, with the same login and trust.
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        Self {
            server: ServerAddress::At(host.to_owned(), port),
            ..self.clone()
        }
    }

    pub(super) fn sentinels(&self) -> Option<&Sentinels> {
        match &self.server {
            ServerAddress::At(..) | ServerAddress::Cluster(_) => None,
            ServerAddress::Sentinel(sentinels) => Some(sentinels),
        }
    }

    /// Returns true if the link is encrypted.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Returns the ACL user; `None` stands for `default`.
    pub fn username(&self) -> Option<&str> {
        self.login.username.as_deref()
    }

    /// Returns the password.
    pub fn password(&self) -> Option<&Secret> {
        self.login.password.as_ref()
    }

    /// Returns the database number; pub/sub ignores it.
    pub fn db(&self) -> i64 {
        self.db
    }

    /// Returns the name of the server in logs and in the label `endpoint`: `host:port`. With Sentinels it is the smallest
    /// `host:port/NAME`, with the name of the master; for a cluster, the smallest `host:port/cluster`.
    pub fn endpoint(&self) -> String {
        let smallest = self.endpoints().into_iter().min().unwrap_or_default();
        match self.is_cluster() {
            true => smallest + "/cluster",
            false => smallest,
        }
    }

    /// Returns all names that [`RedisUrl::endpoint`] chooses from: one for each Sentinel, or for each named node of a cluster.
    pub fn endpoints(&self) -> Vec<String> {
        match &self.server {
            ServerAddress::At(host, port) => vec![endpoint(host, *port)],
            ServerAddress::Sentinel(Sentinels { nodes, master, .. }) => {
                let nodes = nodes.iter();
                let named =
                    |(host, port): &(String, u16)| format!("{}/{master}", endpoint(host, *port));
                nodes.map(named).collect()
            }
            ServerAddress::Cluster(seeds) => {
                let named = seeds.iter().map(|(host, port)| endpoint(host, *port));
                named.collect()
            }
        }
    }

    /// Returns true if both lead to the same server with the same login and trust; the database number does not count.
    pub fn same_login(&self, other: &RedisUrl) -> bool {
        let same_trust = !self.tls || self.trust == other.trust;
        same_trust
            && (&self.server, self.tls, &self.login) == (&other.server, other.tls, &other.login)
    }

    /// Returns the settings for a connection to the server at this address.
    pub(super) fn connection_info(
        &self,
        host: &str,
        port: u16,
    ) -> redis::RedisResult<ConnectionInfo> {
        let mut settings = redis::RedisConnectionInfo::default().set_db(self.db);
        if let Some(username) = &self.login.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.login.password {
            settings = settings.set_password(password.expose());
        }
        let info = self.node_address(host, port)?.into_connection_info()?;
        Ok(info.set_redis_settings(settings))
    }

    /// Converts host and port of the server, or of a Sentinel, for the redis crate.
    pub(super) fn node_address(&self, host: &str, port: u16) -> redis::RedisResult<ConnectionAddr> {
        if !self.tls {
            return Ok(ConnectionAddr::Tcp(host.to_owned(), port));
        }
        let verify = self.trust.verify.unwrap_or_default();
        let insecure = verify == Verify::Nothing;
        let plain = ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure,
            tls_params: None,
        };
        if insecure || self.trust == Trust::default() {
            return Ok(plain);
        }
        tls_settings::address(&self.trust, host, port)
    }
}

fn endpoint(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.endpoint())
    }
}
