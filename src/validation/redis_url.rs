//! Which server a Redis URL names, as far as the configuration has to know. Never shows the URL: it may hold a password.

/// Host and port of a URL, in lower case, without database number: two tenants with the same one share a Redis.
///
/// # Errors
/// What is wrong, as found and expected.
pub(super) fn endpoint(url: &str) -> Result<String, (&'static str, &'static str)> {
    const EXPECTED: &str = "redis://HOST:PORT/DATABASE or rediss://…";
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(("text that is no URL", EXPECTED));
    };
    match scheme {
        "redis" | "rediss" => {}
        "redis+sentinel" => {
            return Err(("redis+sentinel://, not supported by this version", EXPECTED));
        }
        "redis+cluster" => {
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
            assert_eq!(endpoint(url).as_deref(), Ok(expected), "{url}");
        }
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
            "redis+sentinel://h/m/0",
            "redis+cluster://h",
            "unix:///s",
        ] {
            assert!(endpoint(url).is_err(), "{url}");
        }
    }
}
