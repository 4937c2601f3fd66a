//! Wrong values of single keys, as people write them: each is refused at its key, in words that help.
//!
//! A row sets one key of [`super::built::GOOD`] and names the key of the mistake and a part of its line. `{P256}` and
//! the like stand for PEMs; every secret in the table holds `hunter2`, which no message may show.

use super::tokens;

/// `(key, value as TOML, key of the mistake, part of the line)`; without a key of the mistake it is the first.
pub(super) type Row = (&'static str, &'static str, &'static str, &'static str);

const TOKEN: &str = "tenants.acme.token";
const DATABASE: &str = "tenants.acme.users.database";
const ROUTES: &str = "tenants.acme.routes";

/// All rows.
pub(super) fn rows() -> Vec<Row> {
    [
        keys(),
        tokens::rows(),
        redis(),
        trust(),
        databases(),
        statements(),
        origins(),
        routes(),
        groups(),
        rest(),
    ]
    .concat()
}

fn keys() -> Vec<Row> {
    let verifying = "tenants.acme.token.verifying_key";
    let signing = "tenants.acme.token.signing_key";
    vec![
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = '{P256}' }",
            verifying,
            "found an EC key, expected an RSA public key of 2048 to 8192 bits as PEM, for RS256",
        ),
        (
            TOKEN,
            "{ algorithm = 'PS512', verifying_key = '{ED25519}' }",
            verifying,
            "found an Ed25519 key, expected an RSA",
        ),
        (
            TOKEN,
            "{ algorithm = 'ES256', verifying_key = '{RSA}' }",
            verifying,
            "found an RSA key, expected an EC public key on the curve P-256",
        ),
        (
            TOKEN,
            "{ algorithm = 'ES256', verifying_key = '{P384}' }",
            verifying,
            "found a key on another curve, expected an EC public key on the curve P-256",
        ),
        (
            TOKEN,
            "{ algorithm = 'ES384', verifying_key = '{P256}' }",
            verifying,
            "found a key on another curve, expected an EC public key on the curve P-384",
        ),
        (
            TOKEN,
            "{ algorithm = 'ES256', verifying_key = '{K256}' }",
            verifying,
            "expected an EC public key on the curve P-256",
        ),
        (
            TOKEN,
            "{ algorithm = 'EdDSA', verifying_key = '{P256}' }",
            verifying,
            "found an EC key, expected an Ed25519 public key",
        ),
        (
            TOKEN,
            "{ algorithm = 'EdDSA', verifying_key = '{ED448}' }",
            verifying,
            "expected an Ed25519 public key",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = '{RSA1024}' }",
            verifying,
            "found an RSA key of 1024 bits, expected an RSA public key of 2048",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = '{RSA_PRIVATE}' }",
            verifying,
            "found a private key",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = '{RSA_ESCAPED}' }",
            verifying,
            r"found a PEM with \n in place of its line breaks",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = '-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----' }",
            verifying,
            "found a PEM that cannot be read",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = 'hunter2' }",
            verifying,
            "found text that is no PEM",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', verifying_key = '-----BEGIN PUBLIC KEY----- hunter2' }",
            verifying,
            "found text that is no PEM",
        ),
        (
            TOKEN,
            "{ algorithm = 'RS256', signing_key = 'hunter2' }",
            verifying,
            "found RS256 without verifying_key",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', verifying_key = 'hunter2' }",
            signing,
            "found HS256 without signing_key",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = '{RSA}' }",
            signing,
            "found a PEM, SSH or JWK key",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = 'ssh-ed25519 hunter2' }",
            signing,
            "found a PEM, SSH or JWK key",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = '{\"kty\":\"hunter2\"}' }",
            signing,
            "found a PEM, SSH or JWK key",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = '' }",
            signing,
            "found an empty text",
        ),
        (
            TOKEN,
            "{ algorithm = 'hs256', signing_key = 'hunter2' }",
            "tenants.acme.token.algorithm",
            "found \"hs256\", expected one of HS256",
        ),
        (
            TOKEN,
            "{ algorithm = 'none', signing_key = 'hunter2' }",
            "tenants.acme.token.algorithm",
            "found \"none\"",
        ),
        (
            TOKEN,
            "{ algorithm = 'hunter2-hunter2-hunter2', signing_key = 'x' }",
            "tenants.acme.token.algorithm",
            "found another text",
        ),
        (
            TOKEN,
            "{ keys = [{ algorithm = 'HS256', signing_key = 'hunter2' }, { algorithm = 'ES256', verifying_key = '{P384}' }] }",
            "tenants.acme.token.keys[1].verifying_key",
            "found a key on another curve",
        ),
        (TOKEN, "{ keys = [] }", TOKEN, "found no key"),
        (
            TOKEN,
            "{ keys = [{ algorithm = 'HS256' }] }",
            "tenants.acme.token.keys[0].signing_key",
            "found HS256 without signing_key",
        ),
        (
            TOKEN,
            "{ jwk_url = 'http://id.example/hunter2', algorithm = 'RS256' }",
            "tenants.acme.token.jwk_url",
            "found a URL over http, expected https://",
        ),
        (
            TOKEN,
            "{ jwk_url = 'id.example/hunter2', algorithm = 'RS256' }",
            "tenants.acme.token.jwk_url",
            "found text that is not a URL",
        ),
        (
            TOKEN,
            "{ jwk_url = 'https://', algorithm = 'RS256' }",
            "tenants.acme.token.jwk_url",
            "found text that is not a URL",
        ),
        (
            TOKEN,
            "{ jwk_url = 'https://id.example/jwks' }",
            "tenants.acme.token.algorithm",
            "found jwk_url without algorithm",
        ),
        (
            TOKEN,
            "{ jwk_url = 'https://id.example/jwks', algorithm = 'HS256' }",
            TOKEN,
            "found no key",
        ),
        (
            TOKEN,
            "{ jwk_url = 'https://id.example/jwks', algorithm = 'RS1' }",
            "tenants.acme.token.algorithm",
            "found \"RS1\"",
        ),
        (
            "tenants.acme.token.sources",
            "[]",
            "",
            "found an empty list",
        ),
        (
            "tenants.acme.token.sources",
            "['cookies']",
            "tenants.acme.token.sources[0]",
            "found \"cookies\"",
        ),
        (
            "tenants.acme.token.token_types",
            "[]",
            "",
            "found an empty list",
        ),
        (
            "tenants.acme.token.max_size",
            "'8'",
            "",
            "write digits and a unit",
        ),
    ]
}

fn trust() -> Vec<Row> {
    vec![
        (
            "tls.ca",
            "['hunter2']",
            "tls.ca[0]",
            "found text without a certificate, expected a PEM with the certificates of authorities",
        ),
        (
            "tls.ca",
            "{ file = 'ca.pem' }",
            "",
            "found a table, expected a list, each certificates as PEM",
        ),
        (
            "tls.ca",
            "[{ path = 'ca.pem' }]",
            "tls.ca[0]",
            "found another table, expected certificates as PEM",
        ),
        (
            "redis",
            "{ url = 'rediss://:hunter2@h', verify = 'off' }",
            "redis.verify",
            "expected \"full\" or \"ca\" or \"none\"",
        ),
        (
            "redis",
            "{ url = 'redis://:hunter2@h', verify = 'ca' }",
            "redis.verify",
            "found verify beside URLs without TLS, expected rediss://",
        ),
        (
            "tenants.acme.redis",
            "{ verify = 'ca' }",
            "tenants.acme.redis.verify",
            "found verify without a url",
        ),
        (
            "tenants.acme.users",
            "{ database = 'sqlite://hunter2.db', verify = 'full' }",
            "tenants.acme.users.verify",
            "found a SQLite database, expected postgres:// or mysql://",
        ),
        (
            "tenants.acme.users",
            "{ database = 'postgres://u:hunter2@h/d?sslmode=require', verify = 'full' }",
            "tenants.acme.users.verify",
            "found verify beside the sslmode of the URL, expected one of the two",
        ),
    ]
}

fn redis() -> Vec<Row> {
    vec![
        (
            "redis.url",
            "'rediss://:hunter2@h/0?ssl_cert_reqs=none'",
            "",
            "found a URL with options after ? or #",
        ),
        (
            "redis.url",
            "'rediss://:hunter2@h/0#insecure'",
            "",
            "found a URL with options after ? or #",
        ),
        (
            "redis.url",
            "'redis://:hunter/2@h:6379/0'",
            "",
            "found a URL with a raw / before its @",
        ),
        (
            "redis.url",
            "'redis://:hunter/2@h:6379/0'",
            "",
            "in user and password write / as %2F",
        ),
        (
            "redis.url",
            "'redis://u:hunter?2@h:6379/0'",
            "",
            "found a URL with a raw ? before its @",
        ),
        (
            "redis.url",
            "'redis://u:hunter#2@h:6379/0'",
            "",
            "in user and password write # as %23",
        ),
        (
            "redis.url",
            "'redis://u:hunter2%ff@h/0'",
            "",
            "found a login that is not percent-encoded text",
        ),
        (
            "redis.url",
            "'redis://:hunter2@h/zero'",
            "",
            "found a URL whose path is not a database number",
        ),
        (
            "redis.url",
            "'redis://:hunter2@h/-1'",
            "",
            "found a URL whose path is not a database number",
        ),
        (
            "redis.url",
            "'redis://:hunter2@h:0/0'",
            "",
            "found a URL with a wrong port",
        ),
        (
            "redis.url",
            "'redis://:hunter2@h:70000/0'",
            "",
            "found a URL with a wrong port",
        ),
        (
            "redis.url",
            "'redis://:hunter2@/0'",
            "",
            "found a URL without a host",
        ),
        (
            "redis.url",
            "'redis://:hunter2@a,b/0'",
            "",
            "found several hosts",
        ),
        (
            "redis.url",
            "'redis://:hunter2@a b/0'",
            "",
            "found a URL with a wrong host",
        ),
        (
            "redis.url",
            "'localhost:6379'",
            "",
            "found text that is not a URL",
        ),
        (
            "redis.url",
            "'unix:///run/hunter2.sock'",
            "",
            "found a Unix socket",
        ),
        (
            "redis.url",
            "'http://:hunter2@h/0'",
            "",
            "found another scheme",
        ),
        (
            "redis.url",
            "'redis+cluster://:hunter2@a,b/1'",
            "",
            "found a cluster's URL that cannot be read",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'pubsub', hosts = ['redis+cluster://:hunter2@a,b'] }",
            "tenants.acme.layer.kind",
            "found \"pubsub\" on a Redis Cluster, expected \"sharded\"",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'core', hosts = ['rediss+cluster://:hunter2@a'] }",
            "tenants.acme.layer.kind",
            "found \"core\" on a Redis Cluster, expected \"sharded\"",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'sharded', hosts = ['redis://:hunter2@a'] }",
            "tenants.acme.layer.kind",
            "found \"sharded\" on a Redis that is no cluster",
        ),
        (
            "tenants.acme.layer",
            "{ hosts = ['redis+cluster://a', 'redis+cluster://b'] }",
            "tenants.acme.layer.hosts",
            "found 2 clusters, expected one URL",
        ),
        (
            "tenants.acme.layer",
            "{ prefix = 'a{b}', hosts = ['redis+cluster://a'] }",
            "tenants.acme.layer.prefix",
            "found a prefix with braces",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'sharded' }",
            "tenants.acme.layer.kind",
            "found \"sharded\" without a Redis",
        ),
        (
            "redis.url",
            "'redis+sentinel://:hunter2@a:26379'",
            "",
            "found a Sentinel URL that cannot be read",
        ),
        (
            "redis.url",
            "'redis+sentinel://:hunter2@a/m?db=1'",
            "",
            "found a URL with options after ? or #",
        ),
        ("redis.url", "''", "", "found an empty text"),
        (
            "denylist.redis",
            "'redis://:hunter2@h:x'",
            "",
            "found a URL with a wrong port",
        ),
        (
            "tenants.acme.redis.url",
            "'redis://:hunter2@h/a'",
            "",
            "found a URL whose path",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'core', hosts = ['redis://h', 'rediss://:hunter2@h?x=1'] }",
            "tenants.acme.layer.hosts[1]",
            "found a URL with options",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'pubsub' }",
            "tenants.acme.layer.kind",
            "found \"pubsub\" without a Redis",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'memory', hosts = ['redis://h'] }",
            "tenants.acme.layer.hosts",
            "found hosts of a memory layer",
        ),
        (
            "tenants.acme.layer.prefix",
            "'a b'",
            "",
            "expected text of ASCII without spaces",
        ),
        (
            "tenants.acme.layer.namespace",
            "'acme:'",
            "",
            "expected at most 64 ASCII letters, digits",
        ),
        (
            "tenants.acme.layer.namespace",
            "'x__group__y'",
            "",
            "without __group__",
        ),
        (
            "tenants.acme.layer.group_names",
            "'any'",
            "",
            "found \"any\" on another layer",
        ),
        (
            "tenants.acme.layer",
            "{ kind = 'core', hosts = ['redis://h'], channel_capacity = { 'a[' = 1 } }",
            "tenants.acme.layer.channel_capacity",
            "found \"a[\"",
        ),
    ]
}

fn databases() -> Vec<Row> {
    vec![
        (
            DATABASE,
            "'postgres://u:hunter/2@h:5432/db'",
            "",
            "found a URL with a raw / before its @",
        ),
        (
            DATABASE,
            "'postgres://u:hunter/2@h:5432/db'",
            "",
            "write / as %2F",
        ),
        (
            DATABASE,
            "'postgres://u:12/hunter2@h:5432/db'",
            "",
            "found a URL with a raw / before its @",
        ),
        (
            DATABASE,
            "'postgres://u:hunter?2@h/db'",
            "",
            "write ? as %3F",
        ),
        (DATABASE, "'mysql://u:hunter#2@h/db'", "", "write # as %23"),
        (
            DATABASE,
            "'postgres://u:hunter2@h/db?sslmode=foo'",
            "",
            "found a URL with another value of sslmode, expected sslmode to be disable, allow",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@h/db?sslmode=no-verify'",
            "",
            "found a URL with another value of sslmode",
        ),
        (
            DATABASE,
            "'mysql://u:hunter2@h/db?ssl-mode=require'",
            "",
            "expected ssl-mode to be DISABLED, PREFERRED, REQUIRED",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@h:port/db'",
            "",
            "found a URL that cannot be read (invalid port number)",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@h:99999/db'",
            "",
            "found a URL that cannot be read (invalid port number)",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@[::1/db'",
            "",
            "found a URL that cannot be read",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2%ff@h/db'",
            "",
            "is not percent-encoded text",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@h/db?port=hunter2'",
            "",
            "found a URL with another value of port",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@h/db?hostaddr=h'",
            "",
            "expected hostaddr to be an IP address",
        ),
        (
            DATABASE,
            "'postgres://u:hunter2@h/db?statement-cache-capacity=none'",
            "",
            "another value of statement-cache-capacity",
        ),
        (
            DATABASE,
            "'postgres:u:hunter2@h/db'",
            "",
            "found text that is not a URL",
        ),
        (
            DATABASE,
            "'django.db.backends.postgresql'",
            "",
            "found another text, expected a URL that begins with",
        ),
        (
            DATABASE,
            "'oracle://u:hunter2@h/db'",
            "",
            "found another text",
        ),
        (
            DATABASE,
            "'sqlite://users.db?password=hunter2'",
            "",
            "found a SQLite URL with an option that SQLite does not take",
        ),
        (
            DATABASE,
            "'sqlite://users.db?mode=readonly'",
            "",
            "expected sqlite://PATH, with mode=ro",
        ),
        (
            "tenants.acme.users",
            "{ id_type = 'int' }",
            DATABASE,
            "found no database",
        ),
        (
            "tenants.acme.users.id_type",
            "'bigint'",
            "",
            "found \"bigint\"",
        ),
        (
            "tenants.acme.users.pool",
            "{ max = 0 }",
            "tenants.acme.users.pool.max",
            "found 0",
        ),
    ]
}

fn statements() -> Vec<Row> {
    let query = "tenants.acme.users.query";
    let authorize = "tenants.acme.routes[0].authorize";
    vec![
        (
            query,
            "'SELECT id FROM u'",
            "",
            "found a statement without :user_ids",
        ),
        (
            query,
            "'SELECT id FROM u WHERE id IN (:ids)'",
            "",
            "found a statement with :ids, expected no other names than :user_ids",
        ),
        (
            query,
            "\"SELECT id FROM u WHERE id IN (':user_ids')\"",
            "",
            "found a statement without :user_ids",
        ),
        (query, "' ; '", "", "found an empty statement"),
        (
            "tenants.acme.users.table",
            "'auth user'",
            "",
            "found \"auth user\", expected the name of a table",
        ),
        (
            "tenants.acme.users.table",
            "'a.b.c'",
            "",
            "expected the name of a table",
        ),
        (
            "tenants.acme.users.table",
            "'1users'",
            "",
            "letters, digits and _, no digit first",
        ),
        (
            "tenants.acme.users.table",
            "'\"User\"'",
            "",
            "expected the name of a table",
        ),
        (
            "tenants.acme.token.user_id_field",
            "'a b'",
            "",
            "expected the name of a column",
        ),
        (
            "tenants.acme.token.user_id_field",
            "'badge'",
            "",
            "expected a column of auth_user, or users.table or users.query with the field",
        ),
        (
            ROUTES,
            "[{ path = 'a/<slug:room>', authorize = 'SELECT 1 FROM m WHERE r = :rom' }]",
            authorize,
            "found a statement with :rom, expected no other names than :user_id, :room",
        ),
        (
            ROUTES,
            "[{ path = 'a', authorize = 'SELECT 1 FROM m WHERE u = :user' }]",
            authorize,
            "found a statement with :user, expected no other names than :user_id",
        ),
        (
            ROUTES,
            "[{ path = 'a', authorize = ';' }]",
            authorize,
            "found an empty statement",
        ),
        (
            ROUTES,
            "[{ path = 'a/<int:user_id>', authorize = 'SELECT :user_id' }]",
            "tenants.acme.routes[0].path",
            "would hide the :user_id",
        ),
    ]
}

fn origins() -> Vec<Row> {
    let origin = "tenants.acme.origins[0]";
    vec![
        (
            "tenants.acme.origins",
            "['https://a.example/']",
            origin,
            "an origin has no path",
        ),
        (
            "tenants.acme.origins",
            "['a.example']",
            origin,
            "found \"a.example\"",
        ),
        (
            "tenants.acme.origins",
            "['https://*']",
            origin,
            "found \"https://*\"",
        ),
        (
            "tenants.acme.origins",
            "['https://a.*.b']",
            origin,
            "expected \"https://name\"",
        ),
        (
            "tenants.acme.origins",
            "['https://a.example:x']",
            origin,
            "with a port if it is not the scheme's",
        ),
        (
            "tenants.acme.origins",
            "['*', 'https://u@a.example']",
            "tenants.acme.origins[1]",
            "found \"https://u@a.example\"",
        ),
        (
            "tenants.acme.origins",
            "['self', 'file:///index.html']",
            "tenants.acme.origins[1]",
            "an origin has no path",
        ),
        (
            "tenants.acme.origins",
            "['Self']",
            origin,
            "\"self\", \"file://\"",
        ),
        (
            "tenants.acme.hosts",
            "['a.example:80']",
            "tenants.acme.hosts[0]",
            "without scheme and port",
        ),
        (
            "tenants.acme.hosts",
            "['https://a.example']",
            "tenants.acme.hosts[0]",
            "without scheme and port",
        ),
        (
            "tenants.acme.hosts",
            "['*.*.example']",
            "tenants.acme.hosts[0]",
            "expected a name",
        ),
    ]
}

fn routes() -> Vec<Row> {
    let path = "tenants.acme.routes[0].path";
    let consumer = "tenants.acme.routes[0].consumer";
    vec![
        (
            ROUTES,
            "[{ path = '/ws/' }]",
            path,
            "it must not begin with /",
        ),
        (
            ROUTES,
            "[{ path = 'ws/<room' }]",
            path,
            "< and > must enclose a parameter",
        ),
        (
            ROUTES,
            "[{ path = 'ws/<number:room>/' }]",
            path,
            "\"number\" is",
        ),
        (
            ROUTES,
            "[{ path = 'ws/<slug:a b>/' }]",
            path,
            "\"a b\" is not a valid parameter name",
        ),
        (
            ROUTES,
            "[{ path = '<a>/<a>' }]",
            path,
            "the parameter \"a\" is there twice",
        ),
        (
            ROUTES,
            "[{ path = 'a' }, { path = 'a' }]",
            "tenants.acme.routes[1].path",
            "found \"a\" a second time",
        ),
        (ROUTES, "[{ groups = ['a'] }]", path, "found no path"),
        (
            ROUTES,
            "[{ path = 'a', groups = ['room_{room}'] }]",
            "tenants.acme.routes[0].groups[0]",
            "the route has no parameter \"room\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['{user}'] }]",
            "tenants.acme.routes[0].groups[0]",
            "the route has no parameter \"user\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['{usr.id}'] }]",
            "tenants.acme.routes[0].groups[0]",
            "{usr.id} is no value",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['user_{user.id'] }]",
            "tenants.acme.routes[0].groups[0]",
            "{ and } must enclose a value",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['a'], events = ['[x'] }]",
            "tenants.acme.routes[0].events[0]",
            "expected a shell glob",
        ),
        (
            ROUTES,
            "[{ path = 'a', subprotocols = ['a b'] }]",
            "tenants.acme.routes[0].subprotocols[0]",
            "found \"a b\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', deliver = { field = 'type' } }]",
            "tenants.acme.routes[0].deliver",
            "found the type itself",
        ),
        (
            ROUTES,
            "[{ path = 'a', deliver = 'text' }]",
            "tenants.acme.routes[0].deliver",
            "found \"text\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', consumer = { kind = 'relay' } }]",
            "tenants.acme.routes[0].consumer.kind",
            "found \"relay\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', consumer = { kind = 'broadcast', type = 't' } }]",
            "tenants.acme.routes[0].groups",
            "found no groups",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast' } }]",
            "tenants.acme.routes[0].consumer.type",
            "found no type",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g', 'h'], consumer = { kind = 'broadcast', type = 't' } }]",
            "tenants.acme.routes[0].consumer.to",
            "found no \"to\" on a route with 2 groups",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast', to = 'h', type = 't' } }]",
            "tenants.acme.routes[0].consumer.to",
            "expected one of the route's groups: \"g\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast', type = 'websocket.close' } }]",
            "tenants.acme.routes[0].consumer.type",
            "found \"websocket.close\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast', type = '.t' } }]",
            "tenants.acme.routes[0].consumer.type",
            "neither _ nor .",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast', type = 't', fields = ['__a'] } }]",
            "tenants.acme.routes[0].consumer.fields[0]",
            "found \"__a\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast', type = 't', stamp = ['type'] } }]",
            "tenants.acme.routes[0].consumer.stamp[0]",
            "found \"type\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', consumer = { kind = 'worker', channel = 'chat' } }]",
            "tenants.acme.routes[0].consumer.kind",
            "found a worker on a memory layer",
        ),
        (
            ROUTES,
            "[{ path = 'a', consumer = { kind = 'worker' } }]",
            "tenants.acme.routes[0].consumer.channel",
            "found no channel",
        ),
        (
            ROUTES,
            "[{ path = 'a', consumer = { kind = 'worker', channel = 'a b' } }]",
            "tenants.acme.routes[0].consumer.channel",
            "found \"a b\"",
        ),
        (
            ROUTES,
            "[{ path = 'a', consumer = { kind = 'counter', step = 'hunter2' } }]",
            consumer,
            "found options that the consumer does not take",
        ),
    ]
}

fn groups() -> Vec<Row> {
    let (first, second) = (
        "tenants.acme.routes[0].groups[0]",
        "tenants.acme.routes[1].groups[0]",
    );
    vec![
        (
            ROUTES,
            "[{ path = 'o/<slug:name>', groups = ['{name}'] }, { path = 'r/<slug:room>', groups = ['room_{room}'], authorize = 'SELECT :user_id, :room' }]",
            first,
            "expected no way around the authorize of a route",
        ),
        (
            ROUTES,
            "[{ path = 'r/<slug:room>', groups = ['room_{room}'], authorize = 'SELECT :user_id, :room' }, { path = 'w/<slug:room>', groups = ['room_{room}'] }]",
            second,
            "give this route an authorize too",
        ),
        (
            ROUTES,
            "[{ path = 's', groups = ['staff'], authorize = 'SELECT :user_id' }, { path = 'o/<name>', groups = ['{name}'] }]",
            second,
            "which can make \"staff\"",
        ),
        (
            ROUTES,
            "[{ path = 'o', groups = ['room_lobby'] }, { path = 'r/<room>', groups = ['room_{room}'], authorize = 'SELECT :user_id, :room' }]",
            first,
            "which can make \"room_lobby\"",
        ),
        (
            ROUTES,
            "[{ path = 'r/<slug:room>', groups = ['{room}_{user.username}'] }]",
            first,
            "of two different sets of values, expected a name that one user alone can have",
        ),
        (
            ROUTES,
            "[{ path = 'r/<slug:a>/<slug:b>', groups = ['{a}_{b}'], authorize = 'SELECT :user_id, :a, :b' }]",
            first,
            "of two different sets of values",
        ),
        (
            ROUTES,
            "[{ path = 'r/<slug:room>', groups = ['room_{room}', 'room_{user.id}'] }]",
            first,
            "expected names that no path can share with a user",
        ),
        (
            ROUTES,
            "[{ path = 'r', groups = ['user_{user.username}', 'user_all'] }]",
            "tenants.acme.routes[0].groups[1]",
            "which can make \"user_all\"",
        ),
        (
            ROUTES,
            "[{ path = 'r', groups = ['u_{user.id}'] }, { path = 's', groups = ['u_{claims.name}'] }]",
            second,
            "let the two begin differently",
        ),
    ]
}

fn rest() -> Vec<Row> {
    vec![
        ("log.level", "'inof'", "", "expected error, warn, info"),
        (
            "api.api_keys",
            "['hunter2']",
            "api.api_keys[0]",
            "found a key of 7 bytes",
        ),
        (
            "api.api_keys",
            "['hunter2 hunter2 hunter2 hunter2 hunter2']",
            "api.api_keys[0]",
            "found a key with spaces",
        ),
        (
            "api.confined_keys",
            "[{ key = 'hunter2', scopes = ['send'] }]",
            "api.confined_keys[0].key",
            "found a key of 7 bytes",
        ),
        (
            "api.confined_keys",
            "[{ scopes = ['send'] }]",
            "api.confined_keys[0].key",
            "found no key",
        ),
        (
            "api.confined_keys",
            "[{ key = 'hunter2-hunter2-hunter2-hunter2-hunter2' }]",
            "api.confined_keys[0].scopes",
            "found no scope",
        ),
        (
            "api.confined_keys",
            "[{ key = 'hunter2-hunter2-hunter2-hunter2-hunter2', scopes = ['sned'] }]",
            "api.confined_keys[0].scopes[0]",
            "expected \"tenants:read\" or",
        ),
        (
            "tenants.acme.users.stale_ttl",
            "'1s'",
            "",
            "expected stale_ttl to be at least cache_ttl",
        ),
        (
            "server.heartbeat",
            "{ interval = '5s', timeout = '5s' }",
            "server.heartbeat.timeout",
            "found 5s beside an interval of 5s",
        ),
        (
            "server.listen",
            "'127.0.0.1'",
            "",
            "expected an address and a port",
        ),
        (
            "server.trusted_proxies",
            "['10.0.0.0/40']",
            "server.trusted_proxies[0]",
            "expected a network",
        ),
        (
            "server.client_address",
            "'x-forwarded-for'",
            "",
            "trusted_proxies",
        ),
        ("server.max_queue_bytes", "'0%'", "", "more than 0"),
        ("tenants.acme.limits.connections", "-1", "", "found -1"),
    ]
}
