//! `doctor --acl`: the Redis users that confine each tenant's back end, and the one of the gateway.

use serde_json::json;

use super::servers::{RedisServer, Usage};
use crate::channel_names::channel_patterns;
use crate::config::LayerKind;
use crate::stores::redis_keys;

/// What any client library sends before its first command, and what transactions consist of.
const COMMON: &str = "+ping +hello +select +client|setname +client|id +multi +exec +discard";
/// Revoking and looking at revocations.
/// Cut-offs only rise, which takes a script; `WAIT` asks for replicas.
const DENYLIST: &str = "+get +mget +set +exists +ttl +eval +wait";
/// `channels_redis.pubsub`, and the control channel.
const PUBSUB: &str = "+publish +subscribe +unsubscribe";
/// `channels_redis.core`: its scripts and what they call, and its receiving side.
const CORE: &str = "+eval +evalsha +script|load +zadd +zrem +zrange +zcount +zcard +zremrangebyscore \
                    +zpopmin +bzpopmin +expire +exists +del";
/// The gateway keeps users, revocations and its registry, and runs scripts on them. No configuration, no flush.
const GATEWAY: &str = "+@read +@write +@pubsub +@scripting +@transaction +@connection -@dangerous -@admin \
                       +ping +time +wait +info +role";

/// One user of one server.
pub(super) struct AclLine {
    /// `host:port`.
    pub(super) endpoint: String,
    /// Whose it is: a tenant's back end, or the gateway.
    pub(super) tenant: Option<String>,
    /// `ACL SETUSER …`, with `>PASSWORD` to be filled in.
    pub(super) line: String,
}

/// Returns the lines of every server, each with the gateway's first.
pub(super) fn lines(servers: &[RedisServer]) -> Vec<AclLine> {
    let mut endpoints: Vec<(String, Vec<&RedisServer>)> = Vec::new();
    for server in servers {
        // Users hold for a whole server, whatever the database number and the login.
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
            // Invalidating a user; whatever stands there costs a read of the database at most.
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

/// Returns a layer's groups, and the channels of single sockets, consumers and workers.
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

/// `text` as a pattern that matches it alone.
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

/// Returns the lines for a person, with how to use them.
pub(super) fn text(lines: &[AclLine]) -> String {
    let mut text = String::from(
        "# Redis users for the gateway and for each tenant's back end. Put a password of its own for each PASSWORD into a file\n\
         # of these lines, then: grep ^ACL FILE | redis-cli -h HOST. An ACL file takes them without \"ACL SETUSER\", as \"user NAME …\".\n\
         # Once everybody has a user, close what is open to all: ACL SETUSER default off\n",
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

/// `{"users":[{"endpoint","tenant","line"}]}`; `tenant` is null for the gateway.
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
