//! Redis URLs, good and bad.

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
fn a_cluster_url_is_taken_apart() {
    let url = parse("rediss+cluster://u:p%40ss@b:1,[::1]:2,a,b:1/0").unwrap();
    let seeds = [("::1", 2), ("a", 6379), ("b", 1)].map(|(host, port)| (host.into(), port));
    assert_eq!(url.seeds(), Some(&seeds[..]));
    assert_eq!((url.tls(), url.db(), url.address()), (true, 0, None));
    assert_eq!(url.password().map(Secret::expose), Some("p@ss"));
    assert_eq!(url.endpoints(), ["[::1]:2", "a:6379", "b:1"]);
    assert_eq!(format!("{url}"), "[::1]:2/cluster");
    let node = url.at("n", 7);
    assert_eq!(node.address(), Some(("n", 7)));
    assert_eq!((node.tls(), node.username()), (true, Some("u")));
    let same = parse("rediss+cluster://u:p%40ss@a:6379,b:1,[0::1]:2").unwrap();
    assert!(url.same_login(&same));
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
        ("redis+cluster://a:1,", RedisUrlError::ClusterForm),
        ("redis+cluster://a:1/1", RedisUrlError::ClusterForm),
        ("redis+cluster://", RedisUrlError::ClusterForm),
        ("redis+cluster://a:x", RedisUrlError::ClusterForm),
        ("redis+cluster://a?x=1", RedisUrlError::Options),
        ("rediss+cluster://u:p/w@a", RedisUrlError::RawLogin('/')),
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
    // Before: two spellings of an address were two servers, each with links of its own.
    for same in ["redis://[0:0::1]:1", "redis://[::0001]:1"] {
        assert!(url("redis://[::1]:1").same_login(&url(same)), "{same}");
    }
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
