//! The parser of the URL of a tenant's database. Its faults never show the URL.

use std::borrow::Cow;

use reqwest::Url;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::statement::Dialect;
use super::{mysql, postgres, sqlite};
use crate::config::{Fault, Secret, Trust};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::stores::login;

/// Options of a PostgreSQL URL that its driver knows, beside `options[…]`.
const POSTGRES: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];
/// Options of a MySQL URL that its driver knows.
const MYSQL: [&str; 14] = [
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "charset",
    "collation",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "socket",
    "timezone",
    "time-zone",
];

/// Options of both that name files.
const FILES: [&str; 9] = [
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "socket",
];

/// The form of a server's URL, for texts about another one.
const FORM: &str = "a URL such as postgres://USER:PASSWORD@HOST:5432/DATABASE or mysql://…";

/// The options of a URL, in the form of its driver.
pub(super) enum DriverOptions {
    /// The flag is true if the URL leads to a transaction pooler.
    Postgres(Box<PgConnectOptions>, bool),
    MySql(Box<MySqlConnectOptions>),
    /// The flag is true for a database in memory, which lives as long as a connection to it.
    Sqlite(Box<SqliteConnectOptions>, bool),
}

/// A database's URL that its driver can read. `Debug` shows only the kind of the database.
pub struct DatabaseUrl {
    pub(super) options: DriverOptions,
    /// The password; it is masked in the driver's messages.
    pub(super) password: Option<String>,
    has_unknown_options: bool,
    /// The options of the URL about TLS: a mode, and an authority.
    pub(super) tls: UrlTls,
    /// The URL of an SQLite database opens its file only for reading.
    read_only: bool,
}

/// The options of a URL that say how the server's certificate is checked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UrlTls {
    /// There is an `sslmode`.
    pub(super) mode: bool,
    /// There is an `sslrootcert` or `ssl-ca`.
    pub(super) authority: bool,
    /// `PGSSLROOTCERT` in the environment, which the driver reads, names an authority.
    pub(super) from_environment: bool,
}

impl UrlTls {
    fn of(url: &str, dialect: Dialect) -> Self {
        let Ok(url) = Url::parse(url) else {
            return Self::default();
        };
        let has = |names: &[&str]| url.query_pairs().any(|(name, _)| names.contains(&&*name));
        Self {
            mode: has(&["sslmode", "ssl-mode"]),
            authority: has(&["sslrootcert", "ssl-root-cert", "ssl-ca", "sslca"]),
            from_environment: dialect == Dialect::Postgres
                && std::env::var_os("PGSSLROOTCERT").is_some(),
        }
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DatabaseUrl({:?})", self.dialect())
    }
}

impl DatabaseUrl {
    /// Parses a URL. It looks up and connects nothing.
    ///
    /// # Errors
    /// The fault of the URL; it never quotes the URL.
    pub fn parse(url: &Secret) -> Result<Self, Fault> {
        let text = url.expose();
        match Dialect::of_url(text) {
            Some(Dialect::Postgres) => {
                let (text, has_unknown_options) = server_url(text, &POSTGRES, is_postgres_mode)?;
                let (options, pooled) = postgres::options(&text).map_err(|_| unreadable())?;
                Ok(Self {
                    options: DriverOptions::Postgres(Box::new(options), pooled),
                    password: password(&text),
                    has_unknown_options,
                    tls: UrlTls::of(&text, Dialect::Postgres),
                    read_only: false,
                })
            }
            Some(Dialect::MySql) => {
                let (text, has_unknown_options) = server_url(text, &MYSQL, is_mysql_mode)?;
                let options = mysql::options(&text).map_err(|_| unreadable())?;
                Ok(Self {
                    options: DriverOptions::MySql(Box::new(options)),
                    password: password(&text),
                    has_unknown_options,
                    tls: UrlTls::of(&text, Dialect::MySql),
                    read_only: false,
                })
            }
            Some(Dialect::Sqlite) => {
                let options = sqlite::options(text).map_err(|_| {
                    let found = "a SQLite URL with an option that SQLite does not take";
                    let expected = "sqlite://PATH, with mode=ro|rw|rwc|memory, cache=shared|private, immutable=true or vfs=NAME";
                    let advice = "in a path write ? as %3F and % as %25";
                    Fault::new("", found, expected).advice(advice)
                })?;
                let (in_memory, read_only) = sqlite_modes(text);
                Ok(Self {
                    options: DriverOptions::Sqlite(Box::new(options), in_memory),
                    password: None,
                    has_unknown_options: false,
                    tls: UrlTls::default(),
                    read_only,
                })
            }
            None => {
                let expected = "a URL that begins with postgres://, mysql:// or sqlite://";
                Err(Fault::new("", "another text", expected))
            }
        }
    }

    /// Returns true for a URL that names files of this machine: a database, certificates, keys, a socket.
    pub fn names_files(url: &Secret) -> bool {
        if Dialect::of_url(url.expose()) == Some(Dialect::Sqlite) {
            return true;
        }
        // One that cannot be read is reported as such.
        let Ok(url) = Url::parse(url.expose()) else {
            return false;
        };
        let is_path =
            |host: &str| host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
        let names = |(name, value): (Cow<'_, str>, Cow<'_, str>)| match &*name {
            "host" => is_path(&value),
            name => FILES.contains(&name),
        };
        // The driver of PostgreSQL looks for a socket where no host is named.
        let mut options = url.query_pairs();
        let is_local = Dialect::of_url(url.as_str()) == Some(Dialect::Postgres)
            && url.host_str().is_none_or(str::is_empty)
            && !options.any(|(name, _)| name == "host" || name == "hostaddr");
        is_local || url.host_str().is_some_and(is_path) || url.query_pairs().any(names)
    }

    /// Parses a URL to connect by, with the trust in the certificate of the server.
    ///
    /// # Errors
    /// Fails if the URL cannot be parsed, or does not go with the trust. The error never contains the password.
    pub(super) fn to_connect(url: &Secret, trust: &Trust) -> Result<Self, StoreError> {
        let url = Self::parse(url).and_then(|url| url.trusting(trust));
        url.map_err(|fault| {
            StoreError::new(Dependency::Database, ErrorKind::Other, fault.to_string())
        })
    }

    /// Returns the name for logs and metrics: host and port, or `sqlite`.
    pub(super) fn endpoint(&self) -> String {
        let (host, port) = match &self.options {
            DriverOptions::Postgres(options, _) => (options.get_host(), options.get_port()),
            DriverOptions::MySql(options) => (options.get_host(), options.get_port()),
            DriverOptions::Sqlite(..) => return "sqlite".to_owned(),
        };
        format!("{host}:{port}")
    }

    /// Returns the kind of the database.
    pub fn dialect(&self) -> Dialect {
        match &self.options {
            DriverOptions::Postgres(..) => Dialect::Postgres,
            DriverOptions::MySql(_) => Dialect::MySql,
            DriverOptions::Sqlite(..) => Dialect::Sqlite,
        }
    }

    /// Returns true for a database that ends with its last connection.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.options, DriverOptions::Sqlite(_, true))
    }

    /// Returns true for a URL of SQLite that opens its file only for reading.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Returns a remark for the operator on a URL that can be used: it has unknown options.
    pub fn remark(&self) -> Option<String> {
        let known = match self.dialect() {
            Dialect::Postgres => POSTGRES.join(", "),
            Dialect::MySql => MYSQL.join(", "),
            Dialect::Sqlite => return None,
        };
        let text =
            format!("an option of the URL is not known here and not used; known are {known}");
        self.has_unknown_options.then_some(text)
    }
}

/// Returns true if the URL of an SQLite database names one in memory, and true if it opens its file only for reading. The driver
/// reads both in the same way and does not tell them.
fn sqlite_modes(url: &str) -> (bool, bool) {
    let rest = url.trim_start_matches("sqlite://");
    let rest = rest.trim_start_matches("sqlite:");
    let (database, options) = rest.split_once('?').unwrap_or((rest, ""));
    let read = Url::parse("sqlite:").map(|mut url| {
        url.set_query(Some(options));
        url
    });
    let (mut in_memory, mut read_only) = (database == ":memory:", false);
    for (name, value) in read.iter().flat_map(Url::query_pairs) {
        in_memory |= name == "mode" && value == "memory";
        read_only |= name == "mode" && value == "ro";
        read_only |= name == "immutable" && matches!(&*value, "true" | "1");
    }
    (in_memory, read_only)
}

/// Checks the URL of a server. Returns it without the options that the driver does not know, because the driver would log
/// their values, and true if there are any. `is_mode` checks the word of `sslmode`.
fn server_url<'u>(
    text: &'u str,
    known: &[&str],
    is_mode: fn(&str) -> Option<&'static str>,
) -> Result<(Cow<'u, str>, bool), Fault> {
    let url = readable(text)?;
    for (name, value) in url.query_pairs() {
        if let Some(expected) = expected_value(&name, &value, known, is_mode) {
            let found = format!("a URL with another value of {name}");
            return Err(Fault::new("", found, format!("{name} to be {expected}")));
        }
    }
    let is_known = |name: &str| known.contains(&name) || name.starts_with("options[");
    if url.query_pairs().all(|(name, _)| is_known(&name)) {
        return Ok((text.into(), false));
    }
    let mut without = url.clone();
    without.set_query(None);
    for (name, value) in url.query_pairs().filter(|(name, _)| is_known(name)) {
        without.query_pairs_mut().append_pair(&name, &value);
    }
    Ok((without.to_string().into(), true))
}

/// Reads the URL of a server, whose user, password and database must be percent-encoded text.
fn readable(text: &str) -> Result<Url, Fault> {
    let Some((_, rest)) = text.split_once("://") else {
        return Err(Fault::new("", "text that is not a URL", FORM));
    };
    if let Some(raw) = login::raw_separator(rest) {
        return Err(login::raw_fault(raw, FORM));
    }
    let url = Url::parse(text).map_err(|error| {
        // The parser's error text quotes nothing of the URL.
        Fault::new("", format!("a URL that cannot be read ({error})"), FORM).advice(login::ADVICE)
    })?;
    if url.fragment().is_some() {
        return Err(Fault::new("", "a URL with a #", FORM).advice(login::ADVICE));
    }
    let is_text = |part: &str| {
        percent_encoding::percent_decode_str(part)
            .decode_utf8()
            .is_ok()
    };
    let login = [
        url.username(),
        url.password().unwrap_or_default(),
        url.path(),
    ];
    if !login.into_iter().all(is_text) {
        let found = "a URL whose user, password or database is not percent-encoded text";
        return Err(Fault::new("", found, FORM).advice(login::ADVICE));
    }
    Ok(url)
}

/// Returns the values that the option `name` may have, if `value` is none of them.
fn expected_value(
    name: &str,
    value: &str,
    known: &[&str],
    is_mode: fn(&str) -> Option<&'static str>,
) -> Option<&'static str> {
    match name {
        "sslmode" | "ssl-mode" => is_mode(value),
        "port" if known.contains(&"port") => {
            let port = value.parse::<u16>();
            port.is_err().then_some("a number up to 65535")
        }
        "statement-cache-capacity" => value.parse::<usize>().is_err().then_some("a number"),
        "hostaddr" if known.contains(&"hostaddr") => {
            let address = value.parse::<std::net::IpAddr>();
            address.is_err().then_some("an IP address")
        }
        _ => None,
    }
}

/// Returns the words that `sslmode` may be, if `word` is none of them.
fn is_postgres_mode(word: &str) -> Option<&'static str> {
    let modes = [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ];
    let known = modes.iter().any(|mode| mode.eq_ignore_ascii_case(word));
    (!known).then_some("disable, allow, prefer, require, verify-ca or verify-full")
}

fn is_mysql_mode(word: &str) -> Option<&'static str> {
    let modes = [
        "disabled",
        "preferred",
        "required",
        "verify_ca",
        "verify_identity",
    ];
    let known = modes.iter().any(|mode| mode.eq_ignore_ascii_case(word));
    (!known).then_some("DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY")
}

fn unreadable() -> Fault {
    Fault::new("", "a URL that its driver cannot read", FORM).advice(login::ADVICE)
}

/// Returns the password in the form in which a server may repeat it: decoded.
fn password(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let decode = |text: &str| {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        decoded.ok().map(Cow::into_owned)
    };
    let option = url.query_pairs().find(|(name, _)| name == "password");
    let in_option = option.map(|(_, value)| value.into_owned());
    in_option.or_else(|| decode(url.password()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<DatabaseUrl, Fault> {
        DatabaseUrl::parse(&Secret::from(url))
    }

    /// A path with `mode=memory` or `:memory:` in it used to count as a database in memory, whose pool is never closed.
    #[test]
    fn the_mode_of_an_sqlite_database_stands_in_its_options() {
        for (url, in_memory, read_only) in [
            ("sqlite::memory:", true, false),
            ("sqlite://:memory:", true, false),
            ("sqlite://db?mode=memory&cache=shared", true, false),
            ("sqlite:///srv/mode=memory/db", false, false),
            ("sqlite:///srv/:memory:.db", false, false),
            ("sqlite://db?mode=ro", false, true),
            ("sqlite://db?cache=shared&immutable=true", false, true),
            ("sqlite://db?immutable=1", false, true),
            ("sqlite://db?mode=r%6F", false, true),
            ("sqlite://mode=ro", false, false),
            ("sqlite://db?mode=rw", false, false),
        ] {
            let parsed = parse(url).unwrap_or_else(|fault| panic!("{url}: {fault}"));
            assert_eq!(parsed.is_in_memory(), in_memory, "{url}");
            assert_eq!(parsed.is_read_only(), read_only, "{url}");
        }
    }

    #[test]
    fn a_url_that_names_files_is_known() {
        for (url, names) in [
            ("sqlite:///x.db", true),
            ("postgres://h/db?sslrootcert=/x.pem", true),
            ("postgres:///db?host=/var/run/postgresql", true),
            ("postgres:///db", true),
            ("postgres:///db?host=h", false),
            ("postgres://%2Fvar%2Frun/db", true),
            ("mysql://h/db?socket=/x", true),
            ("mysql://h/db?ssl-ca=x.pem", true),
            ("postgres://u:p@h/db?sslmode=require&host=h2", false),
            ("mysql://u:p@h:3306/db", false),
            ("another text", false),
        ] {
            assert_eq!(DatabaseUrl::names_files(&Secret::from(url)), names, "{url}");
        }
    }

    #[test]
    fn urls_as_they_come_are_read() {
        for (url, password, remark) in [
            (
                "postgres://u:p%2Fw@h:5432/db?sslmode=require",
                Some("p/w"),
                false,
            ),
            ("postgresql://u:p@w@h/db", Some("p@w"), false),
            ("postgres://h/db?user=a@b&password=p@w", Some("p@w"), false),
            ("postgres:///db?host=/var/run/postgresql", None, false),
            ("postgres://u@h/db?statement-cache-capacity=0", None, false),
            (
                "postgres://u:p@h/db?sslmode=require&channel_binding=require",
                Some("p"),
                true,
            ),
            (
                "postgres://u:p@h/db?options[search_path]=a",
                Some("p"),
                false,
            ),
            (
                "mysql://u:p@h/db?ssl-mode=REQUIRED&charset=utf8mb4",
                Some("p"),
                false,
            ),
            ("mysql://u:p@h/db?connect_timeout=5", Some("p"), true),
            ("sqlite://users.db", None, false),
            ("sqlite::memory:", None, false),
            ("sqlite:///tmp/a?mode=rwc", None, false),
        ] {
            let parsed = parse(url).unwrap_or_else(|fault| panic!("{url}: {fault}"));
            assert_eq!(parsed.password.as_deref(), password, "{url}");
            assert_eq!(parsed.remark().is_some(), remark, "{url}");
        }
    }

    #[test]
    fn what_no_driver_reads_is_a_fault_without_the_password() {
        for (url, found) in [
            ("oracle://u:hunter2@h", "another text"),
            (
                "postgres://u:hunter/2@h/db",
                "a URL with a raw / before its @",
            ),
            (
                "postgres://u:12/hunter2@h/db",
                "a URL with a raw / before its @",
            ),
            (
                "postgres://u:hunter?2@h/db",
                "a URL with a raw ? before its @",
            ),
            ("mysql://u:hunter#2@h/db", "a URL with a raw # before its @"),
            ("mysql://h/db#hunter2", "a URL with a #"),
            (
                "postgres://u:hunter2@h:99999/db",
                "a URL that cannot be read (invalid port number)",
            ),
            (
                "postgres://u:hunter2@h:x/db",
                "a URL that cannot be read (invalid port number)",
            ),
            (
                "postgres://u:hunter2%ff@h/db",
                "a URL whose user, password or database",
            ),
            (
                "postgres://u:hunter2@h/db?sslmode=foo",
                "a URL with another value of sslmode",
            ),
            (
                "mysql://u:hunter2@h/db?ssl-mode=require",
                "a URL with another value of ssl-mode",
            ),
            (
                "postgres://u:hunter2@h/db?port=hunter2",
                "a URL with another value of port",
            ),
            (
                "sqlite://users.db?password=hunter2",
                "a SQLite URL with an option",
            ),
            (
                "sqlite://users.db?mode=hunter2",
                "a SQLite URL with an option",
            ),
        ] {
            let fault = parse(url).expect_err(url);
            assert!(fault.found.starts_with(found), "{url}: {fault}");
            assert!(!fault.to_string().contains("hunter"), "{url}: {fault}");
        }
    }
}
