//! The parser of Redis URLs. Passwords in a parsed URL cannot be printed.

use std::fmt;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::login;
use crate::config::{Fault, Secret};

/// The port of a Sentinel whose address has none.
const SENTINEL_PORT: u16 = 26_379;

/// The address of a Redis server and the login.
///
/// * `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS;
/// * `redis+sentinel://[user:password@]host[:port],…/NAME[/db]`, `rediss+sentinel://` for TLS to Sentinels and servers: the
///   master that the Sentinels call NAME. The login is that of the servers. If the Sentinels ask for one, it follows as
///   `?sentinel_username=…&sentinel_password=…`.
///
/// `Display` prints addresses and NAME only.
#[derive(Clone)]
pub struct RedisUrl {
    server: ServerAddress,
    tls: bool,
    login: Login,
    db: i64,
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

/// The reason why a URL names no Redis server. No text quotes the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisUrlError {
    /// There is no `://`.
    NoUrl,
    /// The scheme is not one of Redis.
    Scheme,
    /// The URL names a Unix socket.
    UnixSocket,
    /// The URL names a cluster.
    Topology,
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
        const ONE: &str = "redis://HOST:PORT/DATABASE, rediss://… or redis+sentinel://…";
        const SENTINELS: &str = "redis+sentinel://HOST:PORT,HOST:PORT/NAME/DATABASE";
        use RedisUrlError::*;
        let (found, expected, advice) = match error {
            NoUrl => ("text that is not a URL", ONE, ""),
            Scheme => ("another scheme", ONE, ""),
            UnixSocket => ("a Unix socket, not supported by this version", ONE, ""),
            Topology => (
                "redis+cluster://, not supported by this version",
                ONE,
                "give the URL of one server, or of Sentinels",
            ),
            Options => (
                "a URL with options after ? or #",
                "a URL without, but sentinel_username and sentinel_password with Sentinels",
                "rediss:// verifies certificates by the roots that this machine trusts; SSL_CERT_FILE names others",
            ),
            RawLogin(raw) => return login::raw_fault(raw, ONE),
            Login => (
                "a login that is not percent-encoded text",
                ONE,
                "in user and password write % as %25",
            ),
            SeveralHosts => ("several hosts", ONE, "Sentinels have redis+sentinel://"),
            NoHost => ("a URL without a host", ONE, ""),
            Port => ("a URL with a wrong port", ONE, login::ADVICE),
            Database => ("a URL whose path is not a database number", ONE, ""),
            Form => ("a URL with a wrong host", ONE, login::ADVICE),
            SentinelForm => ("a Sentinel URL that cannot be read", SENTINELS, ""),
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
            "redis+cluster" | "rediss+cluster" => Err(RedisUrlError::Topology),
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
            server: ServerAddress::At(host, port),
            tls,
            login: Login {
                username: settings.username().map(str::to_owned),
                password: settings.password().map(Secret::from),
            },
            db: settings.db(),
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
        let nodes = nodes.map(parse_node).collect::<Option<Vec<_>>>();
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
        })
    }

    /// Returns host and port; `None` if Sentinels are asked for them.
    pub fn address(&self) -> Option<(&str, u16)> {
        match &self.server {
            ServerAddress::At(host, port) => Some((host, *port)),
            ServerAddress::Sentinel(_) => None,
        }
    }

    pub(super) fn sentinels(&self) -> Option<&Sentinels> {
        match &self.server {
            ServerAddress::At(..) => None,
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
    /// `host:port/NAME`, with the name of the master.
    pub fn endpoint(&self) -> String {
        self.endpoints().into_iter().min().unwrap_or_default()
    }

    /// Returns all names that [`RedisUrl::endpoint`] chooses from: one for each Sentinel.
    pub fn endpoints(&self) -> Vec<String> {
        match &self.server {
            ServerAddress::At(host, port) => vec![endpoint(host, *port)],
            ServerAddress::Sentinel(Sentinels { nodes, master, .. }) => {
                let nodes = nodes.iter();
                let named =
                    |(host, port): &(String, u16)| format!("{}/{master}", endpoint(host, *port));
                nodes.map(named).collect()
            }
        }
    }

    /// Returns true if both lead to the same server with the same login; the database number does not count.
    pub fn same_login(&self, other: &RedisUrl) -> bool {
        (&self.server, self.tls, &self.login) == (&other.server, other.tls, &other.login)
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
        let info = node_address(host, port, self.tls).into_connection_info()?;
        Ok(info.set_redis_settings(settings))
    }
}

/// Converts host and port for the redis crate.
pub(super) fn node_address(host: &str, port: u16, tls: bool) -> ConnectionAddr {
    if tls {
        ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(host.to_owned(), port)
    }
}

fn endpoint(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
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

fn parse_node(text: &str) -> Option<(String, u16)> {
    // An IPv6 address stands in brackets.
    let (host, port) = match text.strip_prefix('[') {
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
    let port = port.map_or(Some(SENTINEL_PORT), |port| port.parse().ok())?;
    (!host.is_empty() && port != 0).then(|| (host.to_owned(), port))
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
        assert_eq!(url.address(), Some(("redis.example", 6380)));
        assert_eq!((url.tls(), url.db()), (true, 3));
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
    fn a_sentinel_url_is_taken_apart() {
        let url = parse("rediss+sentinel://u:p%40ss@b:1,[::1]:2,a/my%2Dmaster/3").unwrap();
        let sentinels = url.sentinels().unwrap();
        let nodes = [("b", 1), ("::1", 2), ("a", 26379)].map(|(host, port)| (host.into(), port));
        assert_eq!(sentinels.nodes, nodes);
        assert_eq!(sentinels.master, "my-master");
        assert!(sentinels.login == Login::default());
        assert_eq!((url.tls(), url.db(), url.address()), (true, 3, None));
        assert_eq!(url.username(), Some("u"));
        assert_eq!(url.password().map(Secret::expose), Some("p@ss"));
        assert_eq!(url.endpoint(), "[::1]:2/my-master");

        let url = parse("redis+sentinel://:p@a/m?sentinel_username=s&sentinel_password=q%26");
        let url = url.unwrap();
        assert_eq!((url.username(), url.db()), (None, 0));
        let login = &url.sentinels().unwrap().login;
        assert_eq!(login.username.as_deref(), Some("s"));
        assert_eq!(login.password.as_ref().map(Secret::expose), Some("q&"));
        assert_eq!(format!("{url} {url:?}"), "a:26379/m RedisUrl(a:26379/m)");
    }

    #[test]
    fn a_url_does_not_print_its_password() {
        let url = parse("redis://u:hunter2@h/0").unwrap();
        assert_eq!(format!("{url} {url:?}"), "h:6379 RedisUrl(h:6379)");
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for (url, error) in [
            ("redis+sentinel://a:1,b:2", RedisUrlError::SentinelForm),
            ("redis+sentinel://a:1,/m", RedisUrlError::SentinelForm),
            ("redis+sentinel://a:0/m", RedisUrlError::SentinelForm),
            ("redis+sentinel://a:x/m", RedisUrlError::SentinelForm),
            ("redis+sentinel:///m/0", RedisUrlError::SentinelForm),
            ("redis+sentinel://a/m/x", RedisUrlError::SentinelForm),
            ("redis+sentinel://a/m/-1", RedisUrlError::SentinelForm),
            ("redis+sentinel://a/m/0/1", RedisUrlError::SentinelForm),
            ("redis+sentinel://[::1/m", RedisUrlError::SentinelForm),
            ("redis+sentinel://a/m?db=1", RedisUrlError::Options),
            ("redis+sentinel://a/m#x", RedisUrlError::Options),
            ("redis+cluster://a:1,b:2", RedisUrlError::Topology),
            ("http://a", RedisUrlError::Scheme),
            ("localhost:6379", RedisUrlError::NoUrl),
            ("", RedisUrlError::NoUrl),
            ("unix:///run/redis.sock", RedisUrlError::UnixSocket),
            ("redis://a/0?protocol=resp3", RedisUrlError::Options),
            ("rediss://a#insecure", RedisUrlError::Options),
            ("rediss://a/0?ssl_cert_reqs=none", RedisUrlError::Options),
            ("redis://a/x", RedisUrlError::Database),
            ("redis://a/-1", RedisUrlError::Database),
            ("redis://a/99999999999999999999", RedisUrlError::Database),
            ("redis://a:99999", RedisUrlError::Port),
            ("redis://a:0", RedisUrlError::Port),
            ("redis://a:x", RedisUrlError::Port),
            ("redis://a,b/0", RedisUrlError::SeveralHosts),
            ("redis://", RedisUrlError::NoHost),
            ("redis://:1", RedisUrlError::NoHost),
            ("redis://[::1/0", RedisUrlError::Form),
            ("redis://a b/0", RedisUrlError::Form),
            ("redis://0.0.0.0/0", RedisUrlError::Form),
            ("redis://:%ff@a/0", RedisUrlError::Login),
            ("redis://:p/ss@a/0", RedisUrlError::RawLogin('/')),
            ("redis://u:p#ss@a/0", RedisUrlError::RawLogin('#')),
            ("redis+sentinel://u:p?ss@a/m", RedisUrlError::RawLogin('?')),
        ] {
            assert_eq!(parse(url).err(), Some(error), "{url}");
        }
    }

    #[test]
    fn endpoints_are_those_of_each_address() {
        for (url, expected) in [
            ("redis://h:7000/3", &["h:7000"][..]),
            ("redis://:p@ss@h/", &["h:6379"]),
            ("redis://[::1]:7/0", &["[::1]:7"]),
            (
                "redis+sentinel://A:1,[::1]/m/2",
                &["A:1/m", "[::1]:26379/m"],
            ),
        ] {
            assert_eq!(parse(url).unwrap().endpoints(), expected, "{url}");
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
