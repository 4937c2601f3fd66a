//! A Redis URL, taken apart once; its password cannot be printed.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use crate::config::Secret;

/// One Redis server and how to log in: `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS.
///
/// `Display` prints `host:port` alone.
#[derive(Clone)]
pub struct RedisUrl {
    info: ConnectionInfo,
    host: String,
    port: u16,
    tls: bool,
    password: Option<Secret>,
}

/// The URL names no single Redis server. None of these quotes the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Another scheme.
    #[error("a Redis URL begins with redis:// or rediss://")]
    Scheme,
    /// Sentinel and Cluster.
    #[error("Redis Sentinel and Redis Cluster are not supported yet; give the URL of one server")]
    Topology,
    /// `?…` or `#…`.
    #[error("a Redis URL takes no options after ? or #")]
    Options,
    /// Host, port or database number cannot be read.
    #[error("the Redis URL cannot be read; its form is redis://user:password@host:6379/0")]
    Form,
}

impl RedisUrl {
    /// Takes a URL apart. Nothing is looked up or connected.
    ///
    /// # Errors
    /// [`RedisUrlError`], which never quotes the URL.
    pub fn parse(url: &Secret) -> Result<Self, RedisUrlError> {
        let text = url.expose();
        let (scheme, rest) = text.split_once("://").ok_or(RedisUrlError::Scheme)?;
        match scheme {
            "redis" | "rediss" => {}
            "redis+sentinel" | "rediss+sentinel" | "redis+cluster" | "rediss+cluster" => {
                return Err(RedisUrlError::Topology);
            }
            _ => return Err(RedisUrlError::Scheme),
        }
        if rest.contains(['?', '#']) {
            return Err(RedisUrlError::Options);
        }
        let info = text
            .into_connection_info()
            .map_err(|_| RedisUrlError::Form)?;
        let (host, port, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (host.clone(), *port, false),
            ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port, true),
            _ => return Err(RedisUrlError::Form),
        };
        let password = info.redis_settings().password().map(Secret::from);
        Ok(Self {
            info,
            host,
            port,
            tls,
            password,
        })
    }

    /// Host name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port; 6379 where the URL has none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the link is encrypted.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// The user of the ACL; `None` is `default`.
    pub fn username(&self) -> Option<&str> {
        self.info.redis_settings().username()
    }

    /// The password.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The database number; pub/sub ignores it.
    pub fn db(&self) -> i64 {
        self.info.redis_settings().db()
    }

    /// `host:port`: the `endpoint` label, and how logs name the server.
    pub fn endpoint(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether both lead to the same server as the same user; the database number does not count.
    pub fn same_login(&self, other: &RedisUrl) -> bool {
        (&self.host, self.port, self.tls) == (&other.host, other.port, other.tls)
            && self.username() == other.username()
            && self.password == other.password
    }

    pub(super) fn connection_info(&self) -> &ConnectionInfo {
        &self.info
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<RedisUrl, RedisUrlError> {
        RedisUrl::parse(&url.into())
    }

    #[test]
    fn a_url_is_taken_apart() {
        let url = parse("rediss://al%40ice:pa%3Ass@redis.example:6380/3").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.tls(), url.db()),
            ("redis.example", 6380, true, 3)
        );
        assert_eq!(url.username(), Some("al@ice"));
        assert_eq!(url.password().map(Secret::expose), Some("pa:ss"));
        let url = parse("redis://localhost").unwrap();
        assert_eq!((url.endpoint().as_str(), url.db()), ("localhost:6379", 0));
        assert_eq!(
            parse("redis://[::1]:7000").unwrap().endpoint(),
            "[::1]:7000"
        );
    }

    #[test]
    fn a_url_does_not_print_its_password() {
        let url = parse("redis://u:hunter2@h/0").unwrap();
        assert_eq!(format!("{url} {url:?}"), "h:6379 RedisUrl(h:6379)");
    }

    #[test]
    fn what_is_not_one_server_is_refused() {
        for (url, error) in [
            ("redis+sentinel://a:1,b:2/m/0", RedisUrlError::Topology),
            ("redis+cluster://a:1,b:2", RedisUrlError::Topology),
            ("http://a", RedisUrlError::Scheme),
            ("localhost:6379", RedisUrlError::Scheme),
            ("unix:///run/redis.sock", RedisUrlError::Scheme),
            ("redis://a/0?protocol=resp3", RedisUrlError::Options),
            ("rediss://a#insecure", RedisUrlError::Options),
            ("redis://a/x", RedisUrlError::Form),
            ("redis://a:99999", RedisUrlError::Form),
            ("redis://", RedisUrlError::Form),
        ] {
            assert_eq!(parse(url).err(), Some(error), "{url}");
        }
    }

    #[test]
    fn the_database_number_is_no_other_login() {
        let url = |text| parse(text).unwrap();
        assert!(url("redis://u:p@a/0").same_login(&url("redis://u:p@a/3")));
        for other in [
            "redis://u:q@a",
            "redis://v:p@a",
            "redis://u:p@b",
            "rediss://u:p@a",
            "redis://a",
        ] {
            assert!(!url("redis://u:p@a").same_login(&url(other)), "{other}");
        }
    }
}
