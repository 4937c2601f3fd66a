//! Which server a Redis URL names, as far as the configuration has to know. Never shows the URL: it may hold a password.

use crate::stores::redis_url::{RedisUrl, RedisUrlError};

/// What is wrong with a URL, as found and expected.
type Wrong = (&'static str, &'static str);

/// What a URL names, in lower case, without database number: two tenants with one in common share a Redis. A server by its
/// host and port, a master by each of the Sentinels and its name.
///
/// # Errors
/// What is wrong.
pub(super) fn endpoints(url: &str) -> Result<Vec<String>, Wrong> {
    if url.starts_with("redis+sentinel://") || url.starts_with("rediss+sentinel://") {
        return sentinels(url);
    }
    endpoint(url).map(|one| vec![one])
}

fn sentinels(url: &str) -> Result<Vec<String>, Wrong> {
    const EXPECTED: &str = "redis+sentinel://HOST:PORT,HOST:PORT/NAME/DATABASE";
    let parsed = RedisUrl::parse(&url.into()).map_err(|error| match error {
        RedisUrlError::Options => (
            "a URL with other options than sentinel_username and sentinel_password",
            EXPECTED,
        ),
        _ => ("a Sentinel URL that cannot be read", EXPECTED),
    })?;
    let endpoints = parsed.endpoints().into_iter();
    Ok(endpoints.map(|one| one.to_ascii_lowercase()).collect())
}

fn endpoint(url: &str) -> Result<String, Wrong> {
    const EXPECTED: &str = "redis://HOST:PORT/DATABASE, rediss://… or redis+sentinel://…";
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(("text that is no URL", EXPECTED));
    };
    match scheme {
        "redis" | "rediss" => {}
        "redis+cluster" | "rediss+cluster" => {
            return Err(("redis+cluster://, not supported by this version", EXPECTED));
        }
        "unix" | "redis+unix" => {
            return Err(("a Unix socket, not supported by this version", EXPECTED));
        }
        _ => return Err(("another scheme", EXPECTED)),
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let (_, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    if address.contains(',') {
        return Err(("several hosts", EXPECTED));
    }
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok()),
        _ => (address, Some(6379)),
    };
    let port = port.filter(|port| *port != 0);
    match port {
        None => Err((
            "a URL with a wrong port (a password is percent-encoded)",
            EXPECTED,
        )),
        Some(_) if host.is_empty() => Err(("a URL without a host", EXPECTED)),
        Some(port) => {
            let database = rest.split_once('/').map_or("", |(_, path)| path);
            let database = database.split(['?', '#']).next().unwrap_or("");
            if database.bytes().all(|b| b.is_ascii_digit()) {
                Ok(format!("{}:{port}", host.to_ascii_lowercase()))
            } else {
                Err(("a URL whose path is no database number", EXPECTED))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_has_neither_password_nor_database() {
        for (url, expected) in [
            ("redis://h", "h:6379"),
            ("redis://H:7000/3", "h:7000"),
            ("rediss://user:p%40ss@h:1/0?x=y", "h:1"),
            ("redis://:p@ss@h/", "h:6379"),
            ("redis://[::1]:7/0", "[::1]:7"),
            ("redis://[::1]", "[::1]:6379"),
        ] {
            assert_eq!(endpoints(url), Ok(vec![expected.to_owned()]), "{url}");
        }
        let master = endpoints("redis+sentinel://u:p%40@A:1,[::1]/mymaster/2?sentinel_password=x");
        let expected = ["a:1/mymaster", "[::1]:26379/mymaster"].map(str::to_owned);
        assert_eq!(master, Ok(expected.into()));
        for url in [
            "",
            "h:6379",
            "http://h",
            "redis://",
            "redis://:1",
            "redis://h:0",
            "redis://h:x",
            "redis://a,b/0",
            "redis://h/x",
            "redis+sentinel://h/",
            "redis+sentinel://h/m/x",
            "rediss+sentinel://h:0/m",
            "redis+sentinel://h/m?x=1",
            "redis+cluster://h",
            "unix:///s",
        ] {
            assert!(endpoints(url).is_err(), "{url}");
        }
    }
}
