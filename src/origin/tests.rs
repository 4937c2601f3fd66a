//! Origins of pages and apps, and the policies that take or refuse them.

use super::*;
use axum::http::HeaderValue;

fn allowed(origins: &[&str], sent: &[&str], host: &str) -> bool {
    let origins: Vec<String> = origins.iter().map(|&o| o.to_owned()).collect();
    let policy = OriginPolicy::new(&origins, false).unwrap();
    let mut headers = HeaderMap::new();
    for origin in sent {
        headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
    }
    policy.check(&headers, &host.parse().unwrap()).is_ok()
}

/// An origin that is allowed by its text alone is allowed by its parts, too.
#[test]
fn a_text_that_needs_no_parsing_is_one_that_parsing_allows() {
    let texts = [
        "https://app.example",
        "http://app.example",
        "https://app.example:443",
        "https://app.example:8443",
        "https://app.example.",
        "https://app.example:",
        "https://a@app.example",
        "https://*.example",
        "https://[::1]",
        "https://",
        "https://App.example",
        "ws://app.example",
        "https://app.example/",
    ];
    let mut quick = 0;
    for list in [
        &[][..],
        &["https://app.example", "http://[::1]"],
        &["https://app.example:8443"],
        &["self"],
    ] {
        let list: Vec<String> = list.iter().map(|&o: &&str| o.to_owned()).collect();
        let policy = OriginPolicy::new(&list, false).unwrap();
        for text in texts {
            for host in [
                "app.example",
                "app.example:8443",
                "app.example:",
                "[::1]",
                "a@app.example",
                "app.example.",
            ] {
                let Ok(host) = host.parse::<Authority>() else {
                    continue;
                };
                if policy.is_written_so(text, &host) {
                    quick += 1;
                    let origin = Origin::parse(text).expect(text);
                    let by_parts = match policy.allowed.contains(&Allowed::Own) {
                        true => origin.is_of(&host),
                        false => policy.allowed.contains(&Allowed::Exact(origin)),
                    };
                    assert!(by_parts, "{text} {host}");
                }
            }
        }
    }
    assert!(quick > 10, "{quick}");
}

#[test]
fn listed_origins() {
    let list = &["https://app.example", "http://dev.example:3000"];
    for (row, sent, expected) in [
        ("listed", "https://app.example", true),
        ("listed, port written out", "https://app.example:443", true),
        ("listed, upper case", "HTTPS://App.Example", true),
        ("listed with port", "http://dev.example:3000", true),
        ("not listed", "https://other.example", false),
        ("null", "null", false),
        ("suffix trick", "https://app.example.evil", false),
        ("prefix trick", "https://evilapp.example", false),
        ("http for https", "http://app.example", false),
        ("other port", "https://app.example:8443", false),
        ("path", "https://app.example/", false),
        (
            "user information",
            "https://app.example@evil.example",
            false,
        ),
        ("user information before", "https://evil@app.example", false),
        ("empty", "", false),
        (
            "the request's host is not implied",
            "https://acme.example",
            false,
        ),
    ] {
        assert_eq!(allowed(list, &[sent], "acme.example"), expected, "{row}");
    }
}

#[test]
fn an_address_is_compared_as_an_address() {
    let list = &["http://[2001:0DB8::000A]:3000"];
    assert!(allowed(list, &["http://[2001:db8::a]:3000"], "a.example"));
    assert!(!allowed(list, &["http://[2001:db8::b]:3000"], "a.example"));
}

#[test]
fn wildcards_and_null() {
    for (row, list, sent, expected) in [
        ("child", "https://*.x.example", "https://a.x.example", true),
        ("parent", "https://*.x.example", "https://x.example", false),
        (
            "grandchild",
            "https://*.x.example",
            "https://a.b.x.example",
            false,
        ),
        (
            "no label",
            "https://*.x.example",
            "https://.x.example",
            false,
        ),
        ("no dot", "https://*.x.example", "https://ax.example", false),
        ("scheme", "https://*.x.example", "http://a.x.example", false),
        (
            "port",
            "https://*.x.example:8443",
            "https://a.x.example:8443",
            true,
        ),
        ("null", "null", "null", true),
        ("any", "*", "https://whoever.example", true),
        ("any, null too", "*", "null", true),
    ] {
        assert_eq!(allowed(&[list], &[sent], "acme.example"), expected, "{row}");
    }
}

#[test]
fn without_a_list_the_request_s_own_host() {
    for (sent, host, expected) in [
        ("https://acme.example", "acme.example", true),
        ("http://ACME.example", "acme.EXAMPLE", true),
        ("https://acme.example", "acme.example:443", true),
        ("http://localhost:8000", "localhost:8000", true),
        ("http://localhost:3000", "localhost:8000", false),
        ("http://localhost", "localhost:8000", false),
        ("https://evil.example", "acme.example", false),
        ("ftp://acme.example", "acme.example", false),
        ("null", "acme.example", false),
        ("http://[::1]:8000", "[::1]:8000", true),
        // Before: the spelling counted, and this origin was refused.
        ("http://[::1]:8000", "[0:0:0:0:0:0:0:1]:8000", true),
        ("http://[::2]:8000", "[::1]:8000", false),
    ] {
        assert_eq!(allowed(&[], &[sent], host), expected, "{sent} {host}");
    }
}

#[test]
fn the_request_s_own_host_may_be_listed_beside_others() {
    let list = &["https://app.example", "self"];
    for (sent, host, expected) in [
        ("https://app.example", "ws.example", true),
        ("https://ws.example", "ws.example", true),
        ("https://WS.example:443", "ws.example", true),
        ("http://ws.example:80", "ws.example", true),
        ("https://ws.example:8443", "ws.example:8443", true),
        ("https://ws.example", "ws.example:443", true),
        // The port is a part of the origin: another server may listen there.
        ("https://ws.example:8443", "ws.example", false),
        ("https://ws.example", "ws.example:8443", false),
        ("http://[::1]:8000", "[0:0::1]:8000", true),
        ("http://[::1]", "[::1]:8000", false),
        // React Native on Android, of old.
        ("https://ws.example/", "ws.example", true),
        ("https://ws.example//", "ws.example", false),
        ("https://ws.example/chat", "ws.example", false),
        ("https://app.example/", "ws.example", false),
        ("https://ws.example.evil", "ws.example", false),
        ("https://evil.example", "ws.example", false),
        ("file://", "ws.example", false),
        ("self", "ws.example", false),
        ("https://self", "ws.example", false),
        ("null", "ws.example", false),
        ("", "ws.example", false),
    ] {
        assert_eq!(allowed(list, &[sent], host), expected, "{sent} {host}");
    }
}

#[test]
fn apps_and_files_have_schemes_of_their_own() {
    let id = "chrome-extension://abcdefghijklmnopabcdefghijklmnop";
    for (entry, sent, expected) in [
        ("file://", "file://", true),
        ("FILE://", "file://", true),
        ("file://", "null", false),
        ("file://", "file:///", false),
        ("file://", "file://host", false),
        ("capacitor://localhost", "capacitor://localhost", true),
        ("capacitor://localhost", "ionic://localhost", false),
        ("capacitor://localhost", "capacitor://localhost:1", false),
        ("capacitor://", "capacitor://localhost", false),
        ("tauri://localhost", "tauri://localhost", true),
        (id, id, true),
        (id, "chrome-extension://other", false),
        ("app://.", "app://.", true),
    ] {
        assert_eq!(
            allowed(&[entry], &[sent], "localhost"),
            expected,
            "{entry} {sent}"
        );
    }
    // What has a host in a web page's origin is no own host without one.
    assert!(!allowed(&[], &["http://"], "a.example"));
    assert!(!allowed(&["self"], &["capacitor://localhost"], "localhost"));
}

#[test]
fn two_origins_are_refused_and_none_only_where_required() {
    assert!(!allowed(
        &["*"],
        &["https://a.example", "https://a.example"],
        "a.example"
    ));
    assert!(allowed(&["https://a.example"], &[], "a.example"));
    let policy = OriginPolicy::new(&[], true).unwrap();
    let host = "a.example".parse().unwrap();
    assert_eq!(
        policy.check(&HeaderMap::new(), &host),
        Err(Refusal::OriginNotAllowed)
    );
}

#[test]
fn what_is_no_origin_cannot_be_configured() {
    for bad in [
        "",
        "app.example",
        "https://",
        "https://a/b",
        "https://a.example/",
        "https://a.example:x",
        "https://a.example?x",
        "https://a*.b",
        "https://*",
        "https://a.*.b",
        "://a",
        "file",
        "file:",
        "file:///",
        "file:///index.html",
        "http://",
        "wss://",
        "Self",
        "'self'",
    ] {
        let refused = OriginPolicy::new(&["*".to_owned(), bad.to_owned()], false);
        assert_eq!(refused.unwrap_err().0[0].key, "origins[1]", "{bad}");
    }
    for good in [
        "*",
        "null",
        "https://a.example",
        "https://*.a.example",
        "http://localhost:3000",
        "http://[::1]:3000",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "file://",
        "self",
    ] {
        assert!(
            OriginPolicy::new(&[good.to_owned()], false).is_ok(),
            "{good}"
        );
    }
}
