//! The rows of wrong configurations. `{TENANT}` stands for ten lines that make a tenant which can be served.

/// One wrong configuration.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) file: &'static str,
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// One entry for each line that is reported, with texts that the line has.
    pub(crate) expected: &'static [&'static [&'static str]],
}

macro_rules! rows {
    ($($id:literal $file:literal $(env $environment:expr)? => [$([$($part:literal),+]),*];)*) => {
        vec![$(Row {
            id: $id,
            file: $file,
            environment: rows!(@env $($environment)?),
            expected: &[$(&[$($part),+]),*],
        }),*]
    };
    (@env) => { &[] };
    (@env $environment:expr) => { $environment };
}

/// All of them.
pub(crate) fn rows() -> Vec<Row> {
    rows! {
        "a valid one" "{TENANT}" => [];
        "empty" "" => [["lockgate.toml", "tenants: found no tenant"]];
        "a registry without a key" "{TENANT}[registry]\ndatabase = \"postgres://u:hunter2@h/d\"\n"
            => [["registry.database: found a database without a key"], ["tenants.acme.hosts: found no hosts", "where there are several, or a registry"]];
        "a key without a registry" "{TENANT}[registry]\nkey = \"aHVudGVyMi1odW50ZXIyLWh1bnRlcjItaHVudGVyMi0=\"\n"
            => [["registry.key: found a key without a database"]];
        "a registry alone" "[registry]\ndatabase = \"sqlite:///r.db\"\nkey = [\"aHVudGVyMi1odW50ZXIyLWh1bnRlcjItaHVudGVyMi0=\"]\n" => [];
        "wrong parts of a registry" "[registry]\ndatabase = \"redis://u:hunter2@h\"\nkey = [\"hunter2\", \"aHVudGVyMg==\"]\nmigrate = 1\nkeep = \"0s\"\n"
            => [["registry.database: found", "postgres://"], ["registry.key[0]: found a text that is not base64", "openssl"], ["registry.key[1]: found 7 bytes"], ["registry.migrate: found 1"], ["registry.keep: found \"0s\"", "at least 1s"]];
        "a registry in memory" "[registry]\ndatabase = \"sqlite::memory:\"\nkey = \"aHVudGVyMi1odW50ZXIyLWh1bnRlcjItaHVudGVyMi0=\"\n"
            => [["registry.database: found a database in memory"]];
        "syntax" "{TENANT}[server]\nlisten = \n" => [["lockgate.toml:12:", "text that is no TOML (", "expected valid TOML", "in quotes"]];
        "syntax in a secret" "[redis]\nurl = \"redis://:hunter2@h\n" => [["lockgate.toml:2:", "expected valid TOML"]];
        "bare secret" "[redis]\nurl = redis://:hunter2@h\n" => [["lockgate.toml:2:"]];
        "unknown key" "{TENANT}[server]\nmax_conections = 5\n"
            => [["lockgate.toml:12:1: server.max_conections: found an unknown key", "did you mean \"max_connections\"?"]];
        "unknown table" "{TENANT}[serverr]\n" => [["lockgate.toml:11:2: serverr", "did you mean \"server\"?"]];
        "unknown key in a list" "{TENANT}[[tenants.acme.routes]]\npath = \"x\"\ngroup = [\"a\"]\n"
            => [["lockgate.toml:13:1: tenants.acme.routes[1].group:", "did you mean \"groups\"?"]];
        "quoted key" "{TENANT}\"a b\" = 1\n" => [["tenants.acme.routes[0].\"a b\": found an unknown key"]];
        "text for an integer" "{TENANT}[server]\nmax_connections = \"5\"\n"
            => [["lockgate.toml:12:1: server.max_connections: found \"5\", expected an integer, at least 0"]];
        "a table for a list" "{TENANT}hosts = { }\n[server]\ntrusted_proxies = { }\n"
            => [["server.trusted_proxies: found a table, expected a list"], ["routes[0].hosts"]];
        "text for a table" "{TENANT}[server]\nheartbeat = \"hunter2\"\n"
            => [["server.heartbeat: found text, expected a table"]];
        "a secret of the wrong type" "{TENANT}[redis]\nurl = [\"hunter2\"]\n"
            => [["redis.url: found a list, expected a secret"]];
        "a table with too much" "{TENANT}[redis]\nurl = { file = \"a\", env = \"hunter2\" }\n"
            => [["redis.url: found another table, expected a secret"]];
        "a word" "{TENANT}[log]\nformat = \"xml\"\n" => [["log.format: found \"xml\", expected \"auto\" or \"json\" or \"text\""]];
        "a boolean as text" "watch = \"true\"\n{TENANT}" => [["lockgate.toml:1:1: watch: found \"true\", expected true or false"]];
        "a date" "watch = 2026-01-01\n{TENANT}" => [["watch: found a date"]];
        "negative" "{TENANT}[tenants.acme.limits]\nmessages_per_second = -1\n"
            => [["lockgate.toml:12:1: tenants.acme.limits.messages_per_second: found -1, expected an integer, at least 0"]];
        "NaN" "{TENANT}[server]\nmax_connections = nan\n" => [["server.max_connections: found NaN"]];
        "infinite" "{TENANT}[server]\nmax_connections = inf\n" => [["server.max_connections: found inf"]];
        "too large" "{TENANT}[server]\nmax_connections = 99999999999999999999\n" => [["server.max_connections: found inf"]];
        "zero where it means nothing" "{TENANT}[server]\ndrain = { rate = 0 }\n" => [["server.drain.rate: found 0"]];
        "percent" "{TENANT}[server]\nmax_queue_bytes = \"NaN%\"\n" => [["server.max_queue_bytes: found \"NaN%\""]];
        "percent over 100" "{TENANT}[server]\nmax_queue_bytes = \"101%\"\n" => [["server.max_queue_bytes"]];
        "duration without unit" "{TENANT}[server]\nhandshake_timeout = 10\nready_wait = \"10\"\n"
            => [["server.handshake_timeout: found 10, expected a duration", "write digits and a unit"], ["server.ready_wait: found \"10\""]];
        "size without unit" "{TENANT}[tenants.acme.limits]\nmessage_size = 65536\n"
            => [["limits.message_size: found 65536, expected a size", "write digits and a unit"]];
        "duration beyond any clock" "{TENANT}[server]\nmax_age = \"9999999d\"\n" => [["server.max_age", "ten years"]];
        "port 65536" "{TENANT}[server]\nlisten = \"0.0.0.0:65536\"\n" => [["server.listen: found \"0.0.0.0:65536\""]];
        "a name" "{TENANT}[admin]\nlisten = \"example.com:9000\"\n" => [["admin.listen", "an IP address or localhost, no other name"]];
        "one port for two" "{TENANT}[admin]\nlisten = \"127.0.0.1:8000\"\n[api]\nlisten = \"[::1]:8000\"\napi_keys = [\"01234567890123456789012345678901\"]\n"
            => [["lockgate.toml:12:1: admin.listen: found 127.0.0.1:8000, and server.listen is 0.0.0.0:8000"], ["api.listen"]];
        "duplicate key" "{TENANT}[server]\nmax_connections = 1\nmax_connections = 2\n" => [["lockgate.toml:13:", "duplicate key"]];
        "duplicate table" "{TENANT}[server]\n[server]\n" => [["lockgate.toml:12:", "duplicate key"]];
        "unknown variable" "{TENANT}" env &[("LOCKGATE_SERVER__LISTN", "hunter2")]
            => [["LOCKGATE_SERVER__LISTN: server.listn: found an unknown key", "did you mean \"listen\"?"]];
        "a wrong value in a variable" "{TENANT}" env &[("LOCKGATE_SERVER__LISTEN", "hunter2")]
            => [["LOCKGATE_SERVER__LISTEN: server.listen: found text, expected an address"]];
        "an unknown tenant" "{TENANT}" env &[("LOCKGATE_TENANTS__ACNE__LIMITS__CONNECTIONS", "1")]
            => [["LOCKGATE_TENANTS__ACNE__LIMITS__CONNECTIONS: tenants: found the unknown tenant \"acne\"", "did you mean ACME?"]];
        "routes" "{TENANT}" env &[("LOCKGATE_TENANTS__ACME__ROUTES", "[]")] => [["LOCKGATE_TENANTS__ACME__ROUTES", "not its routes"]];
        "a whole tenant" "{TENANT}" env &[("LOCKGATE_TENANTS__ACME", "{}")] => [["LOCKGATE_TENANTS__ACME", "found a whole tenant"]];
        "an empty part" "{TENANT}" env &[("LOCKGATE_SERVER____LISTEN", "x")] => [["LOCKGATE_SERVER____LISTEN", "an empty part"]];
        "pong before ping" "{TENANT}[server]\nheartbeat = { interval = \"5s\", timeout = \"5s\" }\n"
            => [["lockgate.toml:12:32: server.heartbeat.timeout: found 5s beside an interval of 5s"]];
        "no trusted proxy" "{TENANT}[server]\nclient_address = \"forwarded\"\n" => [["server.client_address", "trusted_proxies"]];
        "keys and a key" "{TENANT}[tenants.acme.token.x]\n[[tenants.acme.token.keys]]\n"
            => [["token.x"], ["token.keys: found the list beside signing_key"]];
        "table and query" "{TENANT}[tenants.b]\nhosts=[\"b\"]\nlayer.kind=\"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers = { database = \"mysql://h\", table = \"u\", query = \"select 1\" }\n"
            => [["tenants.acme.hosts: found no hosts"], ["lockgate.toml:15:35: tenants.b.users.table: found both"], ["tenants.b.users.query: found a statement without :user_ids"]];
        "records beside claims" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\", check_revoke_token = true, check_user_is_active = true, user_id_field = \"email\" }\nusers = { source = \"claims\", database = \"mysql://u:hunter2@h\", table = \"u\", query = \"SELECT\", cache_ttl = \"1s\", stale_ttl = \"1s\", negative_ttl = \"1s\", local_ttl = \"1s\", authorize_ttl = \"1s\", pool = { max = 2 } }\n"
            => [["lockgate.toml:4:", "tenants.a.users.table: found table beside users.source = \"claims\" at lockgate.toml:4:11, expected no setting of user records"], ["users.query: found query beside"], ["users.stale_ttl"], ["users.negative_ttl"], ["users.local_ttl"], ["users.database: found database beside", "only the authorize of a route would ask it"], ["users.pool"], ["users.cache_ttl"], ["users.authorize_ttl"], ["token.check_revoke_token: found check_revoke_token beside users.source", "revoke the user's tokens"], ["token.check_user_is_active"], ["token.user_id_field", "users.id_type = \"text\" takes any id"]];
        "claims and authorize" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\", check_user_is_active = false, user_id_field = \"id\" }\nusers = { source = \"claims\", cache_ttl = \"1s\", authorize_ttl = \"1s\", id_type = \"text\" }\n[[tenants.a.routes]]\npath = \"a\"\ngroups = [\"of_{user.any}\"]\nauthorize = \"SELECT 1 WHERE :user_id = 1\"\n"
            => [["lockgate.toml:8:1: tenants.a.routes[0].authorize: found a statement, and no database", "set users.database"]];
        "claims and a wrong database" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers = { source = \"claims\", database = \"oracle://u:hunter2@h\" }\n[[tenants.a.routes]]\npath = \"a\"\nauthorize = \"SELECT 1 WHERE :user_id = 1\"\n"
            => [["tenants.a.users.database: found another text, expected a URL that begins with"]];
        "users from nowhere" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers = { source = \"token\", database = \"mysql://h\" }\n"
            => [["lockgate.toml:4:11: tenants.a.users.source: found \"token\", expected \"database\" or \"claims\""]];
        "an anonymous route with users" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.a.routes]]\npath = \"<slug:x>\"\nanonymous = true\ngroups = [\"room_{x}\", \"of_{user.id}\", \"in_{claims.org}\"]\nauthorize = \"SELECT 1 FROM m WHERE u = :user_id AND x = :x\"\nconsumer = { kind = \"broadcast\", type = \"t\", to = \"room_{x}\", stamp = [\"user_id\"] }\n"
            => [["lockgate.toml:9:1: tenants.a.routes[0].authorize: found a statement with :user_id on a route with anonymous = true", "give users a route of their own"], ["routes[0].groups[1]: found \"of_{user.id}\" on a route with anonymous = true"], ["routes[0].groups[2]: found \"in_{claims.org}\""], ["routes[0].consumer.stamp: found fields of the user"]];
        "anonymous in words" "{TENANT}anonymous = \"yes\"\n" => [["lockgate.toml:11:1: tenants.acme.routes[0].anonymous: found \"yes\", expected true or false"]];
        "an answer to pings" "{TENANT}on_ping = \"pong\"\n" => [["lockgate.toml:11:1: tenants.acme.routes[0].on_ping: found \"pong\", expected \"reply\" or \"consumer\""]];
        "stale before fresh" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers = { database = \"mysql://h\", stale_ttl = \"1s\" }\n"
            => [["lockgate.toml:4:35: tenants.a.users.stale_ttl: found a shorter time"]];
        "API key under 32 bytes" "{TENANT}[api]\nlisten = \"127.0.0.1:9001\"\napi_keys = [\"hunter2\"]\n"
            => [["lockgate.toml:13:13: api.api_keys[0]: found a key of 7 bytes, expected at least 32 bytes"]];
        "public key for HS256" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"-----BEGIN PUBLIC KEY-----\\nhunter2\\n-----END PUBLIC KEY-----\" }\n"
            => [["lockgate.toml:4:32: tenants.a.token.signing_key: found a PEM, SSH or JWK key, expected a shared secret"]];
        "verifying_key with HS256" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", verifying_key = \"hunter2\" }\n"
            => [["tenants.a.token.signing_key: found HS256 without signing_key"]];
        "no PEM" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken = { algorithm = \"RS256\", verifying_key = \"hunter2\" }\n"
            => [["tenants.a.token.verifying_key: found text that is no PEM"]];
        "a private key" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken = { algorithm = \"ES256\", verifying_key = \"-----BEGIN PRIVATE KEY-----hunter2\" }\n"
            => [["tenants.a.token.verifying_key: found a private key"]];
        "no key" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\n" => [["lockgate.toml:1:10: tenants.a.token: found no key"]];
        "algorithm alone" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken.algorithm = \"HS256\"\n" => [["lockgate.toml:4:1: tenants.a.token: found no key"]];
        "key alone" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken.signing_key = \"hunter2\"\n" => [["tenants.a.token.signing_key: found a key without its algorithm"]];
        "unknown algorithm" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken.keys = [{ algorithm = \"none\", signing_key = \"hunter2\" }, { kid = \"x\" }]\n"
            => [["lockgate.toml:4:17: tenants.a.token.keys[0].algorithm: found \"none\", expected one of HS256"], ["tenants.a.token.keys[1].algorithm: found no algorithm"]];
        "nine keys" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken.keys = [{algorithm=\"HS256\",signing_key=\"1\"},{algorithm=\"HS256\",signing_key=\"2\"},{algorithm=\"HS256\",signing_key=\"3\"},{algorithm=\"HS256\",signing_key=\"4\"},{algorithm=\"HS256\",signing_key=\"5\"},{algorithm=\"HS256\",signing_key=\"6\"},{algorithm=\"HS256\",signing_key=\"7\"},{algorithm=\"HS256\",signing_key=\"8\"},{algorithm=\"HS256\",signing_key=\"9\"}]\n"
            => [["tenants.a.token.keys: found 9 keys, expected at most 8"]];
        "key set over http" "[tenants.a]\nusers.database = \"sqlite://x\"\nlayer.kind = \"memory\"\ntoken = { jwk_url = \"http://u:hunter2@h/jwks\" }\n"
            => [["tenants.a.token.jwk_url: found a URL over http, expected https://", "insecure_jwk_url"], ["tenants.a.token.algorithm: found jwk_url without algorithm"]];
        "password in a wrong URL" "{TENANT}[redis]\nurl = \"redis://u:hunter2@h:port/0\"\n[denylist]\nredis = \"redis+sentinel://:hunter2@h/m/x\"\n"
            => [["redis.url: found a URL with a wrong port"], ["lockgate.toml:14:1: denylist.redis: found a Sentinel URL that cannot be read, expected redis+sentinel://HOST:PORT"]];
        "a URL where a table belongs" "{TENANT}[tenants.acme]\nredis = \"redis://:hunter2@h/0\"\n" => [["tenants.acme.redis: found text, expected a table"]];
        "a database of another kind" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"oracle://u:hunter2@h\"\n"
            => [["tenants.a.users.database: found another text, expected a URL that begins with"]];
        "origin with path" "{TENANT}[tenants.acme]\norigins = [\"https://a.example/\", \"a.example\"]\n"
            => [["lockgate.toml:12:12: tenants.acme.origins[0]: found \"https://a.example/\"", "an origin has no path"], ["origins[1]"]];
        "tenant twice in a file" "{TENANT}[tenants.acme.token]\n" => [["lockgate.toml:11:", "duplicate key"]];
        "tenant names" "{TENANT}[tenants.\"a:b\"]\n[tenants.\"*\"]\n[tenants.Acme]\n"
            => [["tenants.\"a:b\": found \"a:b\", expected a name of 1 to 63"], ["tenants.\"*\""], ["lockgate.toml:13:10: tenants.Acme"]];
        "hosts of two tenants" "{TENANT}[tenants.acme]\nhosts = [\"a\", \"a:80\"]\n[tenants.b]\nhosts=[\"A\"]\nlayer.kind=\"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.acme.hosts[1]: found \"a:80\", expected a name"], ["tenants.b.hosts[0]: found \"A\", which tenant acme has too, at lockgate.toml:12:1"]];
        "one Redis, several tenants" "[redis]\nurl=\"redis://h/0\"\n[tenants.a]\nhosts=[\"a\"]\nlayer.prefix=\"x\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.b]\nhosts=[\"b\"]\nlayer.prefix=\"x1\"\nredis.url=\"redis://H:6379/5\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.c]\nhosts=[\"c\"]\nlayer.prefix=\"lock\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.d]\nhosts=[\"d\"]\nlayer.prefix=\"\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.e]\nhosts=[\"e\"]\nlayer.prefix=\"a__group__\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["lockgate.toml:10:7: tenants.b.layer.prefix: found \"x1\", which begins with \"x\" of tenant a, at lockgate.toml:5:7"], ["tenants.c.layer.prefix: found a prefix that lockgate: begins with"], ["tenants.d.layer.prefix: found an empty prefix"], ["tenants.e.layer.prefix: found a prefix with __group__"]];
        "namespaces that meet" "[redis]\nurl=\"redis://h\"\n[tenants.a]\nhosts=[\"a\"]\nlayer={ prefix = \"x\", namespace = \"n.\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.b]\nhosts=[\"b\"]\nlayer={ prefix = \"x\", namespace = \"n.m.\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.c]\nhosts=[\"c\"]\nlayer={ prefix = \"x\", namespace = \"n.\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.d]\nhosts=[\"d\"]\nlayer={ prefix = \"x\", namespace = \"o.\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.e]\nhosts=[\"e\"]\nlayer={ prefix = \"xy\", namespace = \"p.\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.b.layer.namespace: found \"n.m.\", which begins with \"n.\" of tenant a"], ["tenants.c.layer.namespace: found \"n.\", which begins with \"n.\" of tenant a"], ["tenants.e.layer.prefix: found \"xy\", which begins with \"x\" of tenant d"]];
        "a namespace of one alone" "[redis]\nurl=\"redis://h\"\n[tenants.a]\nhosts=[\"a\"]\nlayer={ prefix = \"x\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.b]\nhosts=[\"b\"]\nlayer={ prefix = \"x\", namespace = \"n.\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.b.layer.prefix: found \"x\", which begins with \"x\" of tenant a", "have each a namespace"]];
        "a cluster" "{TENANT}[tenants.b]\nhosts=[\"b\"]\nlayer={ kind = \"core\", hosts = [\"redis://a\", \"redis+cluster://b\"] }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.acme.hosts"], ["tenants.b.layer.kind: found \"core\" on a Redis Cluster, expected \"sharded\""]];
        "one of several hosts, several tenants" "[tenants.a]\nhosts=[\"a\"]\nlayer={ kind = \"core\", prefix = \"x\", hosts = [\"redis://h1\", \"redis://h2/1\", \"redis://h3\"] }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.b]\nhosts=[\"b\"]\nlayer={ prefix = \"xy\", hosts = [\"redis://H2:6379\", \"redis://h3\"] }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["lockgate.toml:8:9: tenants.b.layer.prefix: found \"xy\", which begins with \"x\" of tenant a", "on h2:6379"]];
        "Sentinels in common, several tenants" "[tenants.a]\nhosts=[\"a\"]\nlayer={ prefix = \"x\", hosts = [\"redis+sentinel://s1,s2,s3/m\"] }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.b]\nhosts=[\"b\"]\nlayer={ prefix = \"x\", hosts = [\"redis+sentinel://u:p@s3,s4/m/5\"] }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.c]\nhosts=[\"c\"]\nlayer={ prefix = \"x\", hosts = [\"redis+sentinel://s3/other\"] }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.b.layer.prefix: found \"x\", which begins with \"x\" of tenant a", "on s3:26379/m"]];
        "a capacity of no glob" "[tenants.a]\nlayer = { kind = \"core\", hosts = [\"redis://h\"], channel_capacity = { \"a[\" = 5, \"b**\" = 1 } }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.a.layer.channel_capacity: found \"a[\", expected a shell glob"]];
        "no room beside the mark of a history" "[tenants.a]\nhosts=[\"a\"]\nlayer = { kind = \"core\", prefix = \"x\", hosts = [\"redis://h\"], capacity = 2 }\ngroups = [{ name = \"g\", history = {} }]\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.b]\nhosts=[\"b\"]\nlayer = { kind = \"core\", prefix = \"y\", hosts = [\"redis://h\"], channel_capacity = { \"lockgate.*\" = 1 } }\ngroups = [{ name = \"g\", history = {} }]\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[tenants.c]\nhosts=[\"c\"]\nlayer = { kind = \"core\", prefix = \"z\", hosts = [\"redis://h\"], channel_capacity = { \"work*\" = 1 } }\ngroups = [{ name = \"g\", history = {} }]\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.a.layer.capacity: found 2, expected at least 3 beside groups with history"], ["tenants.b.layer.channel_capacity: found 1, expected at least 3"]];
        "core without a Redis" "[tenants.a]\nlayer = { kind = \"core\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.a.layer.kind: found \"core\" without a Redis"]];
        "pubsub without a Redis" "[tenants.a]\nlayer = { kind = \"pubsub\", group_names = \"any\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n"
            => [["tenants.a.layer.kind: found \"pubsub\" without a Redis"]];
        "any names on a memory layer" "[tenants.a]\nlayer = { kind = \"memory\", group_names = \"any\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\n"
            => [["tenants.a.layer.group_names: found \"any\" on another layer"], ["tenants.a.users.database: found no database"]];
        "a worker on a memory layer" "{TENANT}consumer = { kind = \"worker\" }\n"
            => [["lockgate.toml:11:14: tenants.acme.routes[0].consumer.kind: found a worker on a memory layer"], ["consumer.channel: found no channel"]];
        "a worker's keys" "{TENANT}consumer = { kind = \"worker\", channel = \"a!b\", partitions = 2000, accept = \"me\", worker_timeout = \"0s\", on_worker_full = \"wait\" }\n[redis]\nurl = \"redis://h\"\n"
            => [["consumer.kind: found a worker on a memory layer"], ["consumer.channel: found \"a!b\", expected 1 to 99"], ["consumer.partitions: found 2000, expected an integer from 0 to 1024"], ["consumer.accept: found \"me\", expected \"gateway\" or \"worker\""], ["consumer.worker_timeout: found \"0s\""], ["consumer.on_worker_full: found \"wait\""]];
        "a worker's channel among tenants" "[redis]\nurl=\"redis://h\"\n[tenants.a]\nhosts=[\"a\"]\nlayer.prefix=\"a_\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.a.routes]]\npath=\"w\"\nconsumer = { kind = \"worker\", channel = \"chat\" }\n[tenants.b]\nhosts=[\"b\"]\nlayer.prefix=\"b_\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.b.routes]]\npath=\"w\"\nconsumer = { kind = \"worker\", channel = \"b_chat\" }\n[tenants.c]\nhosts=[\"c\"]\nlayer={ kind=\"core\", prefix=\"c_\" }\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.c.routes]]\npath=\"w\"\nconsumer = { kind = \"worker\", channel = \"chat\" }\n"
            => [["lockgate.toml:10:31: tenants.a.routes[0].consumer.channel: found \"chat\" on h:6379, where other tenants are too", "begins with the tenant's prefix \"a_\""]];
        "a worker's channel that is another's" "[redis]\nurl=\"redis://h\"\n[tenants.a]\nhosts=[\"a\"]\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.a.routes]]\npath=\"w\"\nconsumer = { kind = \"worker\", channel = \"asgi__group__x\" }\n"
            => [["tenants.a.routes[0].consumer.channel: found \"asgi__group__x\", which begins with \"asgi__group__\""]];
        "a worker's channel that is a partition" "[redis]\nurl=\"redis://h\"\n[tenants.a]\nhosts=[\"a\"]\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.a.routes]]\npath=\"w\"\nconsumer = { kind = \"worker\", channel = \"chat\", partitions = 2 }\n[[tenants.a.routes]]\npath=\"v\"\nconsumer = { kind = \"worker\", channel = \"chat.1\" }\n[[tenants.a.routes]]\npath=\"u\"\nconsumer = { kind = \"worker\", channel = \"chat.2\" }\n"
            => [["tenants.a.routes[1].consumer.channel: found \"chat.1\", which is a partition of \"chat\" at lockgate.toml:"]];
        "a worker's long channel and wait" "[redis]\nurl=\"redis://h\"\n[tenants.a]\nhosts=[\"a\"]\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers.database = \"mysql://h\"\n[[tenants.a.routes]]\npath=\"w\"\nconsumer = { kind = \"worker\", channel = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\", partitions = 11, accept = \"worker\", worker_timeout = \"26s\" }\n"
            => [["consumer.channel: found", "leaves no room for .10"], ["consumer.worker_timeout: found 26s, expected at most \"25s\""]];
        "unknown kind" "{TENANT}consumer = { kind = \"brodcast\" }\n" => [["consumer.kind: found \"brodcast\", expected one of listen, echo, broadcast, worker, chat", "did you mean \"broadcast\"?"]];
        "key of another kind" "{TENANT}consumer = { kind = \"echo\", to = \"all\" }\n" => [["consumer.to: found an unknown key, expected one of kind"]];
        "broadcast" "{TENANT}consumer = { kind = \"broadcast\", to = \"al\", fields = [\"type\", \"__x\", \"user_id\", \"ok\"], stamp = [\"user_id\"] }\n"
            => [["consumer.to: found \"al\", expected one of the route's groups: \"all\""], ["consumer.type: found no type"], ["fields[0]"], ["fields[1]"], ["fields[2]: found \"user_id\", which is stamped too"]];
        "broadcast to which" "{TENANT}[[tenants.acme.routes]]\npath = \"x\"\ngroups = [\"a\", \"b\"]\nconsumer = { kind = \"broadcast\", type = \"websocket.send\" }\n[[tenants.acme.routes]]\npath = \"y\"\nconsumer = { kind = \"broadcast\", type = \"t\" }\n"
            => [["routes[1].consumer.to: found no \"to\" on a route with 2 groups"], ["routes[1].consumer.type: found \"websocket.send\""], ["routes[2].groups: found no groups"]];
        "a broadcast without a handler" "{TENANT}consumer = { kind = \"broadcast\", type = \"_x\" }\n"
            => [["routes[0].consumer.type: found \"_x\", expected a type that begins with neither _ nor ."]];
        "paths" "{TENANT}[[tenants.acme.routes]]\npath = \"/x\"\n[[tenants.acme.routes]]\npath = \"<slg:x>\"\n[[tenants.acme.routes]]\npath = \"<slug:x\"\n[[tenants.acme.routes]]\n[[tenants.acme.routes]]\npath = \"ws/\"\n"
            => [["lockgate.toml:12:1: tenants.acme.routes[1].path: found \"/x\""], ["routes[2].path", "\"slg\" is not a converter"], ["routes[3].path"], ["routes[4].path: found no path"], ["routes[5].path: found \"ws/\" a second time"]];
        "regular expressions of re_path" "{TENANT}[[tenants.acme.routes]]\npath = '^ws/chat/(?P<room>\\w+)/$'\ngroups = [\"a\"]\n[[tenants.acme.routes]]\npath = '^ws/(a|b)/'\n"
            => [["lockgate.toml:12:1: tenants.acme.routes[1].path: found", "a regular expression of re_path()", "written for path() it is \"ws/chat/<slug:room>/\""], ["routes[2].path", "literal text and parameters"]];
        "fields of the user that nothing returns" "[tenants.a]\nlayer.kind = \"memory\"\ntoken = { algorithm = \"HS256\", signing_key = \"01234567890123456789012345678901\" }\nusers = { database = \"mysql://h\", query = \"SELECT id, is_active, username FROM u WHERE id IN (:user_ids)\" }\n[[tenants.a.routes]]\npath = \"x\"\ngroups = [\"team_{user.team}\"]\nconsumer = { kind = \"broadcast\", type = \"t\", stamp = [\"user_id\", \"usernam\"] }\n"
            => [["lockgate.toml:7:11: tenants.a.routes[0].groups[0]: found the user's field \"team\", expected a column that users.query returns"], ["routes[0].consumer.stamp[1]: found the user's field \"usernam\"", "perhaps username is meant"]];
        "fields of the user that a table has not" "{TENANT}[[tenants.acme.routes]]\npath = \"x\"\ngroups = [\"team_{user.team}\"]\n"
            => [["routes[1].groups[0]: found the user's field \"team\", expected a column that is read of users.table", "write users.query to read others"]];
        "templates" "{TENANT}[[tenants.acme.routes]]\npath = \"<slug:x>\"\ngroups = [\"{y}\", \"{user\", \"{a.b}\"]\n"
            => [["routes[1].groups[0]: found \"{y}\"", "the route has no parameter \"y\""], ["groups[1]"], ["groups[2]"]];
        "characters that no name has" "{TENANT}[[tenants.acme.routes]]\npath = \"<slug:x>\"\ngroups = [\"chat:{x}\", \"chat_{x}\", \"of {user.id}\"]\n"
            => [["routes[1].groups[0]: found \"chat:{x}\"", "':'", "group_names"], ["routes[1].groups[2]", "' '"]];
        "templates that collide" "{TENANT}[[tenants.acme.routes]]\npath = \"<slug:x>\"\ngroups = [\"room_{x}\"]\n[[tenants.acme.routes]]\npath = \"u/\"\ngroups = [\"room_{user.id}\"]\n"
            => [["lockgate.toml:13:11: tenants.acme.routes[1].groups[0]: found \"room_{x}\", which can make", "\"room_{user.id}\" at lockgate.toml:16:11"]];
        "deliver" "{TENANT}deliver = \"bdy\"\n" => [["routes[0].deliver: found \"bdy\", expected \"body\", \"event\" or { field = "]];
        "resume with one field" "{TENANT}resume = true\ndeliver = { field = \"a\" }\n"
            => [["routes[0].deliver: found { field = \"a\" } beside resume = true"]];
        "events and subprotocols" "{TENANT}events = [\"[a\"]\nsubprotocols = [\"a b\"]\n" => [["routes[0].events[0]"], ["routes[0].subprotocols[0]"]];
        "log level" "{TENANT}[log]\nlevel = \"inof\"\n" => [["lockgate.toml:12:1: log.level: found \"inof\""]];
        "missing include" "include = [\"none.toml\", \"none/*.toml\", \"[\"]\n{TENANT}" => [["lockgate.toml:1:12: include[0]: found no file"], ["include[2]"]];
        "secret file" "{TENANT}[redis]\nurl = { file = \"none\" }\n" => [["lockgate.toml:12:1: redis.url: found the file none: No such file"]];
        "everything at once" "watch = 1\n[server]\nlisten = 1\n[log]\nlevel = \"\"\n[tenants.a]\nlimits.send_queue = \"1\"\n"
            => [["1:1: watch"], ["3:1: server.listen"], ["5:1: log.level"], ["7:8: tenants.a.limits.send_queue"], ["tenants.a.users.database"], ["tenants.a.token: found no key"]];
    }
}
