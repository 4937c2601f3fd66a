//! `doctor --acl`: the Redis users of the gateway and of each tenant's back end, with the fewest rights that work.

use serde_json::json;

use super::servers::{RedisServer, Usage};
use crate::channel_names::channel_patterns;
use crate::config::LayerKind;
use crate::stores::redis_keys;

/// The commands that client libraries send before the first other command.
const COMMON: &str = "+ping +hello +select +client|setname";
/// The commands that write revocations. WATCH keeps cut-offs from falling, and WAIT asks for replicas. GETRANGE reads no more
/// than a cut-off.
const DENYLIST: &str = "+set +getrange +watch +unwatch +multi +exec +discard +wait";
/// The commands that invalidate a user and announce a revocation.
const CONTROL: &str = "+set +publish";
/// The commands of `channels_redis.pubsub`.
const PUBSUB: &str = "+publish +subscribe +unsubscribe";
/// The command of `lockgate.layers` that reads the rules of groups.
const RULES: &str = "+getrange";
/// The commands of `lockgate.layers` that record: it calls a function, which runs the others.
const RECORDING: &str =
    "+fcall +hmget +hset +xadd +xdel +xtrim +xrange +pexpire +del +time +publish +info|server";
/// The commands of `channels_redis.core`: its scripts, the commands that they call, and its receiving side.
const CORE: &str = "+eval +evalsha +script|load +zadd +zrem +zrange +zcount +zremrangebyscore \
                    +zpopmin +bzpopmin +expire +del +multi +exec +discard";
/// The warning above the line of a back end with [`CORE`].
const CORE_WARNING: &str = "channels_redis.core needs scripts (EVAL), and a script that does not end stops this Redis for \
                            all tenants until SCRIPT KILL: give the tenant a Redis of its own, or use the layer pubsub";
/// The commands of the gateway, which stores users, revocations and its registry, and runs scripts on them. It may
/// not change the configuration or flush the data.
const GATEWAY: &str = "+@read +@write +@pubsub +@scripting +@transaction +@connection -@dangerous -@admin \
                       +ping +time +wait +info +role";

/// One user of one server.
pub(super) struct AclLine {
    /// The server, `host:port`.
    pub(super) endpoint: String,
    /// The tenant whose back end uses it; `None` for the gateway.
    pub(super) tenant: Option<String>,
    /// The command `ACL SETUSER …`, with `>PASSWORD` to fill in.
    pub(super) line: String,
    /// The harm that these rights can do to others; `None` if they can do none.
    pub(super) warning: Option<&'static str>,
}

/// Returns the lines of every server; the gateway's line comes first.
pub(super) fn lines(servers: &[RedisServer]) -> Vec<AclLine> {
    let mut endpoints: Vec<(String, Vec<&RedisServer>)> = Vec::new();
    for server in servers {
        // A Redis user applies to the whole server, so URLs that differ in database number or login count as one.
        let endpoint = server.url.endpoint();
        match endpoints.iter_mut().find(|(known, _)| *known == endpoint) {
            Some((_, same)) => same.push(server),
            None => endpoints.push((endpoint, vec![server])),
        }
    }
    let mut lines = Vec::new();
    for (endpoint, servers) in endpoints {
        let usages: Vec<&Usage> = servers.iter().flat_map(|server| &server.tenants).collect();
        lines.push(AclLine {
            endpoint: endpoint.clone(),
            tenant: None,
            line: gateway(&usages),
            warning: None,
        });
        let mut names: Vec<_> = usages.iter().map(|usage| &usage.tenant).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let own = usages.iter().filter(|usage| usage.tenant == *name);
            let own: Vec<&Usage> = own.copied().collect();
            let is_core = |usage: &&Usage| matches!(usage.layer, Some((LayerKind::Core, _)));
            lines.push(AclLine {
                endpoint: endpoint.clone(),
                tenant: Some(name.to_string()),
                line: back_end(name.as_str(), &own),
                warning: own.iter().any(is_core).then_some(CORE_WARNING),
            });
        }
    }
    lines
}

fn gateway(usages: &[&Usage]) -> String {
    let mut patterns = vec!["~lockgate:*".to_owned(), "&lockgate:*".to_owned()];
    for usage in usages {
        patterns.extend(layer_patterns(usage));
    }
    set_user("lockgate", patterns, GATEWAY)
}

fn back_end(tenant: &str, usages: &[&Usage]) -> String {
    let (mut patterns, mut recording) = (Vec::new(), String::new());
    let mut commands = vec![COMMON];
    for usage in usages {
        if usage.denylist {
            patterns.push(format!("~{}*", redis_keys::denylist_prefix(&usage.tenant)));
            commands.push(DENYLIST);
        }
        if usage.users {
            patterns.push(format!("&{}", redis_keys::control(&usage.tenant)));
            // The back end writes these keys to invalidate a user. A wrong value costs one read of the database.
            patterns.push(format!("~{}*", redis_keys::generations(&usage.tenant)));
            commands.push(CONTROL);
        }
        patterns.extend(layer_patterns(usage));
        match usage.layer {
            Some((LayerKind::Core, _)) => commands.push(CORE),
            Some((LayerKind::PubSub, _)) if usage.histories.is_empty() => commands.push(PUBSUB),
            Some((LayerKind::PubSub, _)) => {
                commands.extend([PUBSUB, RULES]);
                patterns.push(format!("%R~lockgate:{tenant}:groups"));
                recording = recording_selector(tenant);
            }
            Some((LayerKind::Memory, _)) | None => {}
        }
    }
    let mut words: Vec<&str> = Vec::new();
    for word in commands.iter().flat_map(|text| text.split_whitespace()) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    set_user(&format!("{tenant}-backend"), patterns, &words.join(" ")) + &recording
}

/// Returns the patterns of a layer: its groups, and the channels of sockets, consumers and workers.
fn layer_patterns(usage: &Usage) -> Vec<String> {
    match &usage.layer {
        Some((LayerKind::PubSub, prefix)) => {
            let prefix = literal(prefix);
            let workers = usage.workers.iter().map(|channel| format!("&{channel}"));
            let own = [format!("&{}", channel_patterns(&prefix))];
            own.into_iter().chain(workers).collect()
        }
        Some((LayerKind::Core, prefix)) => vec![format!("~{}*", literal(prefix))],
        Some((LayerKind::Memory, _)) | None => Vec::new(),
    }
}

/// Returns the rights to record, apart from the others: what may delete an entry may not delete a revocation.
fn recording_selector(tenant: &str) -> String {
    let own = format!("lockgate:{tenant}");
    format!(" (~{own}:history:* ~{own}:position:* &{own}:group:* -@all {RECORDING})")
}

/// Returns a pattern that matches `text` and nothing else.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '^' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern
}

fn set_user(name: &str, mut patterns: Vec<String>, commands: &str) -> String {
    patterns.sort_unstable();
    patterns.dedup();
    let patterns = patterns.join(" ");
    format!(
        "ACL SETUSER {name} reset on >PASSWORD resetkeys resetchannels {patterns} -@all {commands}"
    )
}

/// Returns the lines as text for a person, with instructions.
pub(super) fn text(lines: &[AclLine]) -> String {
    let mut text = String::from(
        "# Redis users for the gateway and for each tenant's back end. Copy the lines into a file, replace each PASSWORD with\n\
         # a separate password, then: grep ^ACL FILE | redis-cli -h HOST. In an ACL file write \"user NAME …\" instead of \"ACL SETUSER\".\n\
         # A restart forgets users that are not saved. A server with an aclfile saves them by ACL SAVE, one with only a\n\
         # configuration file by CONFIG REWRITE; without either they cannot be saved. `lockgate doctor` says which it is.\n\
         # When every client has a user, disable the default user: ACL SETUSER default off\n\
         # No rule bounds the size of values, of messages and of transactions, or the number of keys. On a Redis that tenants\n\
         # share, set: CONFIG SET proto-max-bulk-len 8mb, CONFIG SET maxmemory-clients 64mb (Redis 7), maxmemory with noeviction,\n\
         # and watch used_memory: in a full Redis no token can be revoked. A Redis for each tenant is the only full separation.\n",
    );
    if lines.iter().any(|line| line.line.contains("+fcall")) {
        text.push_str(
            "# %R~ and what stands in parentheses need Redis 7.0. Before that leave them out: the back end then sends without recording.\n",
        );
    }
    let mut endpoint = None;
    for line in lines {
        if endpoint != Some(&line.endpoint) {
            text.push_str(&format!("\n# {}\n", line.endpoint));
            endpoint = Some(&line.endpoint);
        }
        if let Some(warning) = line.warning {
            text.push_str(&format!("# Warning: {warning}\n"));
        }
        text.push_str(&line.line);
        text.push('\n');
    }
    if lines.is_empty() {
        text.push_str("\n# No Redis is configured.\n");
    }
    text
}

/// Returns `{"users":[{"endpoint","tenant","line","warning"}]}`; `tenant` is null for the gateway, `warning` mostly.
pub(super) fn json(lines: &[AclLine]) -> serde_json::Value {
    let users = lines.iter().map(|line| {
        let AclLine {
            endpoint,
            tenant,
            line,
            warning,
        } = line;
        json!({ "endpoint": endpoint, "tenant": tenant, "line": line, "warning": warning })
    });
    json!({ "users": users.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HistoryConfig;

    #[test]
    fn a_prefix_is_no_pattern() {
        let usage = |kind| Usage {
            tenant: "acme".parse().unwrap(),
            denylist: true,
            users: true,
            layer: Some((kind, "a*[b]\\?".to_owned())),
            workers: vec!["a.work.*".to_owned()],
            histories: Vec::new(),
        };
        let line = back_end("acme", &[&usage(LayerKind::PubSub)]);
        assert!(line.contains(r" &a\*\[b\]\\\?__group__* "), "{line}");
        assert!(line.contains(" &a.work.* "), "{line}");
        let line = back_end("acme", &[&usage(LayerKind::Core)]);
        assert!(line.contains(r" ~a\*\[b\]\\\?* "), "{line}");
    }

    #[test]
    fn a_back_end_that_records_may_call_a_function_and_no_script() {
        let usage = Usage {
            tenant: "acme".parse().unwrap(),
            denylist: true,
            users: true,
            layer: Some((LayerKind::PubSub, "a".to_owned())),
            workers: Vec::new(),
            histories: vec![("g".to_owned(), HistoryConfig::default())],
        };
        let line = back_end("acme", &[&usage]);
        let (root, selector) = line.split_once(" (").unwrap();
        assert!(root.contains(" %R~lockgate:acme:groups "), "{line}");
        assert!(
            !root.contains("+del") && !root.contains("+pexpire"),
            "{line}"
        );
        for word in ["&lockgate:acme:group:*", "+fcall", "+del"] {
            let mut words = selector.split(' ');
            assert!(words.any(|found| found == word), "{word}: {line}");
        }
        assert!(!line.contains("eval"), "{line}");
    }

    #[test]
    fn a_denylist_alone_gives_no_channel() {
        let usage = Usage {
            tenant: "acme".parse().unwrap(),
            denylist: true,
            users: false,
            layer: None,
            workers: Vec::new(),
            histories: Vec::new(),
        };
        assert_eq!(
            back_end("acme", &[&usage]),
            "ACL SETUSER acme-backend reset on >PASSWORD resetkeys resetchannels ~lockgate:acme:deny:* -@all \
             +ping +hello +select +client|setname +set +getrange +watch +unwatch +multi +exec +discard +wait"
        );
    }
}
