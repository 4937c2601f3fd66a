//! The parser of Redis URLs, and the words for its errors.

use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, IntoConnectionInfo as _};

use super::super::login;
use super::{Login, RedisUrl, Sentinels, ServerAddress};
use crate::config::{Fault, Secret, Trust};

/// The port of a Sentinel whose address has none.
const SENTINEL_PORT: u16 = 26_379;
/// The port of a node of a cluster whose address has none.
const NODE_PORT: u16 = 6379;

/// The reason why a URL names no Redis server. No text quotes the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisUrlError {
    /// There is no `://`.
    NoUrl,
    /// The scheme is not one of Redis.
    Scheme,
    /// The URL names a Unix socket.
    UnixSocket,
    /// The URL of a cluster has no addresses, or a database number.
    ClusterForm,
    /// The URL has options (`?…`) or a fragment (`#…`).
    Options,
    /// The login has a raw `/`, `?` or `#`, which ends the address.
    RawLogin(char),
    /// The login is not percent-encoded text.
    Login,
    /// The URL names several hosts without Sentinels.
    SeveralHosts,
    /// There is no host.
    NoHost,
    /// The port is not valid.
    Port,
    /// The path is not a database number.
    Database,
    /// The host is not valid.
    Form,
    /// A Sentinel URL has no addresses or no name.
    SentinelForm,
}

impl From<RedisUrlError> for Fault {
    fn from(error: RedisUrlError) -> Self {
        const ONE: &str =
            "redis://HOST:PORT/DATABASE, rediss://…, redis+sentinel://… or redis+cluster://…";
        const SENTINELS: &str = "redis+sentinel://HOST:PORT,HOST:PORT/NAME/DATABASE";
        const CLUSTER: &str = "redis+cluster://HOST:PORT,HOST:PORT";
        use RedisUrlError::*;
        let (found, expected, advice) = match error {
            NoUrl => ("text that is not a URL", ONE, ""),
            Scheme => ("another scheme", ONE, ""),
            UnixSocket => ("a Unix socket, not supported by this version", ONE, ""),
            Options => (
                "a URL with options after ? or #",
                "a URL without, but sentinel_username and sentinel_password with Sentinels",
                "rediss:// verifies certificates by the authorities that this machine trusts; name others in ca, beside the url",
            ),
            RawLogin(raw) => return login::raw_fault(raw, ONE),
            Login => (
                "a login that is not percent-encoded text",
                ONE,
                "in user and password write % as %25",
            ),
            SeveralHosts => (
                "several hosts",
                ONE,
                "Sentinels have redis+sentinel://, a cluster redis+cluster://",
            ),
            NoHost => ("a URL without a host", ONE, ""),
            Port => ("a URL with a wrong port", ONE, login::ADVICE),
            Database => ("a URL whose path is not a database number", ONE, ""),
            Form => ("a URL with a wrong host", ONE, login::ADVICE),
            SentinelForm => ("a Sentinel URL that cannot be read", SENTINELS, ""),
            ClusterForm => (
                "a cluster's URL that cannot be read",
                CLUSTER,
                "a cluster has no database numbers; one node that answers is enough, so name two or three",
            ),
        };
        Fault::new("", found, expected).advice(advice)
    }
}

impl fmt::Display for RedisUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the URL of a Redis: {}", Fault::from(*self))
    }
}

impl std::error::Error for RedisUrlError {}

impl RedisUrl {
    /// Parses a URL. It looks up and connects nothing.
    ///
    /// # Errors
    /// [`RedisUrlError`], which never quotes the URL.
    pub fn parse(url: &Secret) -> Result<Self, RedisUrlError> {
        let text = url.expose();
        let (scheme, rest) = text.split_once("://").ok_or(RedisUrlError::NoUrl)?;
        if let Some(raw) = login::raw_separator(rest) {
            return Err(RedisUrlError::RawLogin(raw));
        }
        match scheme {
            "redis" | "rediss" => Self::parse_one(text, rest),
            "redis+sentinel" => Self::parse_sentinel(rest, false),
            "rediss+sentinel" => Self::parse_sentinel(rest, true),
            "redis+cluster" => Self::parse_cluster(rest, false),
            "rediss+cluster" => Self::parse_cluster(rest, true),
            "unix" | "redis+unix" => Err(RedisUrlError::UnixSocket),
            _ => Err(RedisUrlError::Scheme),
        }
    }

    fn parse_one(text: &str, rest: &str) -> Result<Self, RedisUrlError> {
        if rest.contains(['?', '#']) {
            return Err(RedisUrlError::Options);
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        parse_login(login).map_err(|_| RedisUrlError::Login)?;
        if address.contains(',') {
            return Err(RedisUrlError::SeveralHosts);
        }
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(0)),
            _ => (address, 6379u16),
        };
        if port == 0 {
            return Err(RedisUrlError::Port);
        }
        if host.is_empty() {
            return Err(RedisUrlError::NoHost);
        }
        let is_number = database.bytes().all(|b| b.is_ascii_digit()) && database.len() < 10;
        if !is_number {
            return Err(RedisUrlError::Database);
        }
        let info = text
            .into_connection_info()
            .map_err(|_| RedisUrlError::Form)?;
        let (host, port, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (host.clone(), *port, false),
            ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port, true),
            _ => return Err(RedisUrlError::Form),
        };
        let settings = info.redis_settings();
        Ok(Self {
            server: ServerAddress::At(canonical(&host), port),
            tls,
            login: Login {
                username: settings.username().map(str::to_owned),
                password: settings.password().map(Secret::from),
            },
            db: settings.db(),
            trust: Trust::default(),
        })
    }

    fn parse_cluster(rest: &str, tls: bool) -> Result<Self, RedisUrlError> {
        if rest.contains(['?', '#']) {
            return Err(RedisUrlError::Options);
        }
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (parse_login(login)?, rest),
            None => (Login::default(), rest),
        };
        let (nodes, database) = rest.split_once('/').unwrap_or((rest, ""));
        if !matches!(database, "" | "0") {
            return Err(RedisUrlError::ClusterForm);
        }
        let seeds = nodes.split(',').map(|node| parse_node(node, NODE_PORT));
        let seeds = seeds.collect::<Option<Vec<_>>>();
        let mut seeds = seeds.ok_or(RedisUrlError::ClusterForm)?;
        // The order does not matter, and two lists of the same nodes are one login.
        seeds.sort_unstable();
        seeds.dedup();
        Ok(Self {
            server: ServerAddress::Cluster(seeds),
            tls,
            login,
            db: 0,
            trust: Trust::default(),
        })
    }

    fn parse_sentinel(rest: &str, tls: bool) -> Result<Self, RedisUrlError> {
        if rest.contains('#') {
            return Err(RedisUrlError::Options);
        }
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (parse_login(login)?, rest),
            None => (Login::default(), rest),
        };
        let mut parts = rest.split('/');
        let nodes = parts.next().unwrap_or_default().split(',');
        let nodes = nodes
            .map(|node| parse_node(node, SENTINEL_PORT))
            .collect::<Option<Vec<_>>>();
        let nodes = nodes.ok_or(RedisUrlError::SentinelForm)?;
        let master = decoded(parts.next().unwrap_or_default())?;
        let db = match parts.next() {
            None | Some("") => 0,
            Some(db) => db.parse().map_err(|_| RedisUrlError::SentinelForm)?,
        };
        if master.is_empty() || db < 0 || parts.next().is_some() {
            return Err(RedisUrlError::SentinelForm);
        }
        let sentinels = Sentinels {
            nodes,
            master,
            login: parse_options(options)?,
        };
        Ok(Self {
            server: ServerAddress::Sentinel(sentinels),
            tls,
            login,
            db,
            trust: Trust::default(),
        })
    }
}

fn decoded(text: &str) -> Result<String, RedisUrlError> {
    let text = percent_decode_str(text).decode_utf8();
    Ok(text.map_err(|_| RedisUrlError::Login)?.into_owned())
}

/// Parses a percent-encoded login: `user:password`, `:password` or `user`.
fn parse_login(text: &str) -> Result<Login, RedisUrlError> {
    let (username, password) = match text.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (text, None),
    };
    let username = decoded(username)?;
    let password = password.map(decoded).transpose()?;
    Ok(Login {
        username: Some(username).filter(|name| !name.is_empty()),
        password: password.as_deref().map(Secret::from),
    })
}

/// Returns the form in which hosts are compared: two spellings of an IPv6 address are one host.
fn canonical(host: &str) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.to_owned(),
    }
}

/// Parses host and port; `port` holds if there is none.
fn parse_node(text: &str, port: u16) -> Option<(String, u16)> {
    // An IPv6 address stands in brackets.
    let (host, given) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            match rest {
                "" => (host, None),
                port => (host, Some(port.strip_prefix(':')?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = given.map_or(Some(port), |port| port.parse().ok())?;
    (!host.is_empty() && port != 0).then(|| (canonical(host), port))
}

fn parse_options(options: &str) -> Result<Login, RedisUrlError> {
    let mut login = Login::default();
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sentinel_username", name)) => login.username = Some(decoded(name)?),
            Some(("sentinel_password", password)) => {
                login.password = Some(Secret::from(decoded(password)?.as_str()));
            }
            _ => return Err(RedisUrlError::Options),
        }
    }
    Ok(login)
}

#[cfg(test)]
mod tests;
