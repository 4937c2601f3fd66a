//! `doctor --acl`: the Redis users of the gateway and of each tenant's back end, with the fewest rights that work.

use serde_json::json;

use super::servers::{RedisServer, Usage};
use crate::channel_names::channel_patterns;
use crate::config::LayerKind;
use crate::stores::redis_keys;

/// The commands that client libraries send before the first other command, and those of transactions.
const COMMON: &str = "+ping +hello +select +client|setname +client|id +multi +exec +discard";
/// The commands that write and read revocations. A script keeps cut-offs from falling, and `WAIT` asks for replicas.
const DENYLIST: &str = "+get +mget +set +exists +ttl +eval +wait";
/// The commands of `channels_redis.pubsub` and of the control channel.
const PUBSUB: &str = "+publish +subscribe +unsubscribe";
/// The commands of `channels_redis.core`: its scripts, the commands that they call, and its receiving side.
const CORE: &str = "+eval +evalsha +script|load +zadd +zrem +zrange +zcount +zcard +zremrangebyscore \
                    +zpopmin +bzpopmin +expire +exists +del";
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
        });
        let mut names: Vec<_> = usages.iter().map(|usage| &usage.tenant).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let own = usages.iter().filter(|usage| usage.tenant == *name);
            lines.push(AclLine {
                endpoint: endpoint.clone(),
                tenant: Some(name.to_string()),
                line: back_end(name.as_str(), &own.copied().collect::<Vec<_>>()),
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
    let mut patterns = Vec::new();
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
            commands.push(PUBSUB);
        }
        patterns.extend(layer_patterns(usage));
        match usage.layer {
            Some((LayerKind::Core, _)) => commands.push(CORE),
            Some((LayerKind::PubSub, _)) => commands.push(PUBSUB),
            Some((LayerKind::Memory, _)) | None => {}
        }
    }
    let mut words: Vec<&str> = Vec::new();
    for word in commands.iter().flat_map(|text| text.split_whitespace()) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    set_user(&format!("{tenant}-backend"), patterns, &words.join(" "))
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
         # When every client has a user, disable the default user: ACL SETUSER default off\n",
    );
    let mut endpoint = None;
    for line in lines {
        if endpoint != Some(&line.endpoint) {
            text.push_str(&format!("\n# {}\n", line.endpoint));
            endpoint = Some(&line.endpoint);
        }
        text.push_str(&line.line);
        text.push('\n');
    }
    if lines.is_empty() {
        text.push_str("\n# No Redis is configured.\n");
    }
    text
}

/// Returns `{"users":[{"endpoint","tenant","line"}]}`; `tenant` is null for the gateway.
pub(super) fn json(lines: &[AclLine]) -> serde_json::Value {
    let users = lines
        .iter()
        .map(|line| json!({ "endpoint": line.endpoint, "tenant": line.tenant, "line": line.line }));
    json!({ "users": users.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        let usage = |kind| Usage {
            tenant: "acme".parse().unwrap(),
            denylist: true,
            users: true,
            layer: Some((kind, "a*[b]\\?".to_owned())),
            workers: vec!["a.work.*".to_owned()],
        };
        let line = back_end("acme", &[&usage(LayerKind::PubSub)]);
        assert!(line.contains(r" &a\*\[b\]\\\?__group__* "), "{line}");
        assert!(line.contains(" &a.work.* "), "{line}");
        let line = back_end("acme", &[&usage(LayerKind::Core)]);
        assert!(line.contains(r" ~a\*\[b\]\\\?* "), "{line}");
    }

    #[test]
    fn a_denylist_alone_gives_no_channel() {
        let usage = Usage {
            tenant: "acme".parse().unwrap(),
            denylist: true,
            users: false,
            layer: None,
            workers: Vec::new(),
        };
        assert_eq!(
            back_end("acme", &[&usage]),
            "ACL SETUSER acme-backend reset on >PASSWORD resetkeys resetchannels ~lockgate:acme:deny:* -@all \
             +ping +hello +select +client|setname +client|id +multi +exec +discard +get +mget +set +exists +ttl +eval +wait"
        );
    }
}
