//! `doctor --acl`: the Redis users of the gateway, of each tenant's back end, and of each project whose schemas are tenants,
//! with the fewest rights that work.

use std::collections::BTreeMap;

use super::servers::{RedisServer, Usage};
use crate::channel_names::{channel_patterns, core_key_patterns};
use crate::config::LayerKind;
use crate::ids::TenantId;
use crate::stores::redis_keys;

pub(super) use self::print::{json, text};

mod print;

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
/// The commands of `lockgate.layers` that record: it calls a function, which runs the others. DEL is not among them: it stops
/// the server while it clears a large key.
const RECORDING: &str = "+fcall +object|encoding +hstrlen +hmget +hset +xadd +xdel +xrange +pexpire +unlink +time +publish +info|server";
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

/// The command by which the gateway learns the map of a cluster.
const GATEWAY_CLUSTER: &str = "+cluster|shards +asking";
/// The commands that the cluster client of redis-py sends by itself.
const CLUSTER_CLIENT: &str =
    "+cluster|slots +cluster|shards +command +asking +readonly +readwrite +info";

/// One user of one server.
pub(super) struct AclLine {
    /// The server, `host:port`; of clusters those of all, with commas between.
    pub(super) endpoint: String,
    /// It is a user of every node of a cluster, perhaps of several clusters.
    is_cluster: bool,
    /// The tenants whose back end uses it; none for the gateway, several for a project whose schemas are tenants.
    pub(super) tenants: Vec<String>,
    /// The command `ACL SETUSER …`, with `>PASSWORD` to fill in.
    pub(super) line: String,
    /// The harm that these rights can do to others, each in a sentence.
    pub(super) warnings: Vec<String>,
}

/// Returns the lines of every server: first the gateway's, then those of tenants, then those of projects.
///
/// All clusters count as one server. Two URLs may name different nodes of one, which no server is asked for here, and a second
/// line for a user takes the rights of the first away.
pub(super) fn lines(servers: &[RedisServer]) -> Vec<AclLine> {
    let mut places: Vec<(Vec<String>, Vec<&RedisServer>)> = Vec::new();
    for server in servers {
        // A Redis user applies to the whole server, so URLs that differ in database number or login count as one.
        let endpoint = server.url.endpoint();
        let is_same = |(known, same): &&mut (Vec<String>, Vec<&RedisServer>)| {
            let are_clusters = || server.url.is_cluster() && same[0].url.is_cluster();
            known.contains(&endpoint) || are_clusters()
        };
        match places.iter_mut().find(is_same) {
            Some((known, same)) => {
                if !known.contains(&endpoint) {
                    known.push(endpoint);
                }
                same.push(server);
            }
            None => places.push((vec![endpoint], vec![server])),
        }
    }
    let mut lines = Vec::new();
    for (endpoints, servers) in places {
        let usages: Vec<&Usage> = servers.iter().flat_map(|server| &server.tenants).collect();
        let is_cluster = servers.iter().any(|server| server.url.is_cluster());
        let at = lines_at(&endpoints.join(", "), &usages).into_iter();
        lines.extend(at.map(|line| match is_cluster {
            true => on_cluster(line),
            false => line,
        }));
    }
    lines
}

/// Turns the line of a user into that for a cluster: its channels are sharded, and its client asks for the map.
fn on_cluster(line: AclLine) -> AclLine {
    let more = match line.tenants.is_empty() {
        true => GATEWAY_CLUSTER,
        false => CLUSTER_CLIENT,
    };
    let (of_user, selector) = line.line.split_once(" (").unwrap_or((&line.line, ""));
    let selector = match selector {
        "" => String::new(),
        selector => format!(" ({selector}"),
    };
    let text = format!("{of_user} {more}{selector}");
    let text = { ["publish", "subscribe", "unsubscribe"].iter() }.fold(text, |text, word| {
        text.replace(&format!("+{word}"), &format!("+s{word}"))
    });
    AclLine {
        line: text,
        is_cluster: true,
        ..line
    }
}

fn lines_at(endpoint: &str, usages: &[&Usage]) -> Vec<AclLine> {
    let line = |tenants: Vec<String>, line: String, warnings| AclLine {
        endpoint: endpoint.to_owned(),
        is_cluster: false,
        tenants,
        line,
        warnings,
    };
    let mut lines = vec![line(Vec::new(), gateway(usages), Vec::new())];
    let mut by_tenant: BTreeMap<&str, Vec<&Usage>> = BTreeMap::new();
    let mut by_prefix: BTreeMap<&str, Vec<&Usage>> = BTreeMap::new();
    for usage in usages {
        let tenant = by_tenant.entry(usage.tenant.as_str()).or_default();
        tenant.push(usage);
        if let Some((_, prefix)) = usage.layer.as_ref().filter(|_| !usage.namespace.is_empty()) {
            by_prefix.entry(prefix).or_default().push(usage);
        }
    }
    let warnings = |own: &[&Usage]| -> Vec<String> {
        let is_core = own.iter().any(|usage| usage.is_core());
        is_core
            .then(|| CORE_WARNING.to_owned())
            .into_iter()
            .collect()
    };
    for (name, own) in &by_tenant {
        let text = back_end(&format!("{name}-backend"), own, Extent::Namespace);
        let mut warnings = warnings(own);
        warnings.extend(own.iter().filter_map(|usage| sharing(usage, usages)));
        lines.push(line(vec![(*name).to_owned()], text, warnings));
    }
    for (prefix, layers) in &by_prefix {
        // What a tenant has on this server beside its layer is the project's too.
        let is_own = |name: &&str| layers.iter().any(|usage| usage.tenant.as_str() == *name);
        let names: Vec<&str> = by_tenant.keys().copied().filter(is_own).collect();
        if names.len() > 1 {
            let own: Vec<&Usage> = names
                .iter()
                .flat_map(|name| by_tenant[name].clone())
                .collect();
            let text = back_end(&format!("{prefix}-project"), &own, Extent::Prefix);
            let names = names.into_iter().map(str::to_owned).collect();
            lines.push(line(names, text, warnings(&own)));
        }
    }
    lines
}

/// Returns the warning about a channel of `own` workers that others' workers listen to as well.
fn sharing(own: &Usage, usages: &[&Usage]) -> Option<String> {
    let (kind, prefix) = own.layer.as_ref()?;
    let is_other = |usage: &&&Usage| usage.tenant != own.tenant;
    let meets = |usage: &&Usage| {
        let layer = usage.layer.as_ref();
        layer.is_some_and(|(other, theirs)| {
            other == kind && other.worker_prefix(theirs) == kind.worker_prefix(prefix)
        })
    };
    let shared = |channel: &&String| {
        let others = usages.iter().filter(is_other).filter(|usage| meets(usage));
        let has = |usage: &&&Usage| usage.workers.iter().any(|other| may_be_one(channel, other));
        others.filter(has).map(|usage| usage.tenant.as_str()).next()
    };
    let found = own
        .workers
        .iter()
        .find_map(|channel| Some((channel, shared(&channel)?)));
    let (channel, other) = found?;
    Some(format!(
        "workers of tenant {other} listen to {channel} too: this user can read and forge the frames of its sockets; give each tenant a \
         channel of its own, or let the one project that serves both use its user alone"
    ))
}

/// Returns true if two channels of workers, each perhaps with `.*` for its partitions, can be the same.
fn may_be_one(one: &str, other: &str) -> bool {
    let is_partition = |name: &str, base: &str| {
        let base = base.strip_suffix('*');
        base.is_some_and(|base| name.starts_with(base))
    };
    one == other || is_partition(one, other) || is_partition(other, one)
}

/// The names of a layer that a back end may use.
#[derive(Clone, Copy, PartialEq)]
enum Extent {
    /// Those of one tenant.
    Namespace,
    /// Those of all tenants that share the prefix.
    Prefix,
}

fn gateway(usages: &[&Usage]) -> String {
    let mut patterns = vec!["~lockgate:*".to_owned(), "&lockgate:*".to_owned()];
    for usage in usages {
        // The gateway has keys beside those of Channels.
        patterns.extend(match &usage.layer {
            Some((LayerKind::Core, prefix)) => vec![format!("~{}*", literal(prefix))],
            _ => layer_patterns(usage, Extent::Namespace),
        });
    }
    set_user("lockgate", patterns, GATEWAY)
}

fn back_end(name: &str, usages: &[&Usage], extent: Extent) -> String {
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
        patterns.extend(layer_patterns(usage, extent));
        match usage.layer {
            Some((LayerKind::Core, _)) => commands.push(CORE),
            Some((LayerKind::PubSub | LayerKind::Sharded, _)) if usage.histories.is_empty() => {
                commands.push(PUBSUB);
            }
            Some((LayerKind::PubSub | LayerKind::Sharded, _)) => {
                commands.extend([PUBSUB, RULES]);
                patterns.push(format!("%R~{}", redis_keys::group_rules(&usage.tenant)));
                let selector = recording_selector(&usage.tenant);
                if !recording.contains(&selector) {
                    recording.push_str(&selector);
                }
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
    set_user(name, patterns, &words.join(" ")) + &recording
}

/// Returns the patterns of a layer: its groups, and the channels of sockets, consumers and workers.
fn layer_patterns(usage: &Usage, extent: Extent) -> Vec<String> {
    let namespace = match extent {
        Extent::Namespace => usage.namespace.as_str(),
        Extent::Prefix => "",
    };
    match &usage.layer {
        Some((LayerKind::PubSub | LayerKind::Sharded, prefix)) => {
            let workers = usage.workers.iter().map(|channel| format!("&{channel}"));
            let own = [format!(
                "&{}",
                channel_patterns(&literal(prefix), namespace)
            )];
            own.into_iter().chain(workers).collect()
        }
        Some((LayerKind::Core, prefix)) if namespace.is_empty() => {
            vec![format!("~{}*", literal(prefix))]
        }
        Some((LayerKind::Core, prefix)) => {
            let prefix = literal(prefix);
            let workers = usage.workers.iter().flat_map(|channel| {
                // The second has the events that a worker is taking.
                ["", "$inflight"].map(|end| format!("~{prefix}{channel}{end}"))
            });
            let own = core_key_patterns(&prefix, namespace);
            own.into_iter().chain(workers).collect()
        }
        Some((LayerKind::Memory, _)) | None => Vec::new(),
    }
}

/// Returns the rights to record, apart from the others: what may delete an entry may not delete a revocation.
fn recording_selector(tenant: &TenantId) -> String {
    let ([histories, positions], notices) = redis_keys::recording_patterns(tenant);
    format!(" (~{histories} ~{positions} &{notices} -@all {RECORDING})")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HistoryConfig;
    use crate::tenant::scripts::ScriptNeeds;

    fn usage(layer: Option<(LayerKind, &str)>) -> Usage {
        Usage {
            tenant: "acme".parse().unwrap(),
            denylist: true,
            users: layer.is_some(),
            layer: layer.map(|(kind, prefix)| (kind, prefix.to_owned())),
            namespace: String::new(),
            workers: Vec::new(),
            histories: Vec::new(),
            scripts: ScriptNeeds::default(),
        }
    }

    fn line_of(usage: &Usage) -> String {
        back_end("acme-backend", &[usage], Extent::Namespace)
    }

    #[test]
    fn a_prefix_is_no_pattern() {
        let usage = |kind| Usage {
            workers: vec!["a.work.*".to_owned()],
            ..usage(Some((kind, "a*[b]\\?")))
        };
        let line = line_of(&usage(LayerKind::PubSub));
        assert!(line.contains(r" &a\*\[b\]\\\?__group__* "), "{line}");
        assert!(line.contains(" &a.work.* "), "{line}");
        let line = line_of(&usage(LayerKind::Core));
        assert!(line.contains(r" ~a\*\[b\]\\\?* "), "{line}");
    }

    #[test]
    fn a_back_end_that_records_may_call_a_function_and_no_script() {
        let line = line_of(&Usage {
            histories: vec![("g".to_owned(), HistoryConfig::default())],
            ..usage(Some((LayerKind::PubSub, "a")))
        });
        let (root, selector) = line.split_once(" (").unwrap();
        assert!(root.contains(" %R~lockgate:acme:groups "), "{line}");
        assert!(
            !line.contains("+del") && !root.contains("+unlink") && !root.contains("+pexpire"),
            "{line}"
        );
        for word in ["&lockgate:acme:group:*", "+fcall", "+unlink"] {
            let mut words = selector.split(' ');
            assert!(words.any(|found| found == word), "{word}: {line}");
        }
        assert!(!line.contains("eval"), "{line}");
    }

    #[test]
    fn a_denylist_alone_gives_no_channel() {
        assert_eq!(
            line_of(&usage(None)),
            "ACL SETUSER acme-backend reset on >PASSWORD resetkeys resetchannels ~lockgate:acme:deny:* -@all \
             +ping +hello +select +client|setname +set +getrange +watch +unwatch +multi +exec +discard +wait"
        );
    }

    #[test]
    fn users_of_tenants_with_one_worker_channel_have_a_warning() {
        let usage = |name: &str, layer: (LayerKind, &str), worker: &str| Usage {
            tenant: name.parse().unwrap(),
            workers: vec!["own.x".to_owned() + name, worker.to_owned()],
            ..usage(Some(layer))
        };
        use LayerKind::{Core, PubSub};
        for (one, other, meet) in [
            ((Core, "p"), (Core, "p"), true),
            ((Core, "p"), (Core, "q"), false),
            ((PubSub, "p"), (PubSub, "q"), true),
            ((PubSub, "p"), (Core, "p"), false),
        ] {
            for (theirs, same) in [("jobs", true), ("jobs.*", false), ("job", false)] {
                let (one, other) = (usage("a", one, "jobs"), usage("b", other, theirs));
                let lines = lines_at("h:1", &[&one, &other]);
                for (line, other) in [(&lines[1], "b"), (&lines[2], "a")] {
                    let told = format!("workers of tenant {other} listen to jobs too");
                    let warned = line.warnings.iter().any(|warning| warning.contains(&told));
                    assert_eq!(warned, meet && same, "{}", text(&lines));
                }
            }
        }
        assert!(may_be_one("jobs.*", "jobs.3") && may_be_one("jobs.3", "jobs.*"));
        assert!(!may_be_one("jobs.*", "jobs") && !may_be_one("jobs.*", "job.3"));
    }

    /// A tenant of a namespace has the groups of it alone, and one project may act for all.
    #[test]
    fn a_namespace_has_its_own_groups_and_a_project_all() {
        for (kind, own, all) in [
            (LayerKind::PubSub, "&a__group__acme.*", "&a__group__*"),
            (LayerKind::Core, "~a:group:acme.*", "~a*"),
        ] {
            let [acme, globex] = ["acme", "globex"].map(|name| Usage {
                tenant: name.parse().unwrap(),
                namespace: format!("{name}."),
                histories: vec![("g".to_owned(), HistoryConfig::default())],
                ..usage(Some((kind, "a")))
            });
            let lines = lines_at("h:1", &[&acme, &globex]);
            let has = |line: &AclLine, word: &str| line.line.split(' ').any(|found| found == word);
            let [gateway, one, other, project] = &lines[..] else {
                panic!("{}", text(&lines));
            };
            assert!(has(one, own) && !has(one, all), "{}", one.line);
            assert!(!has(other, own) && !has(other, all), "{}", other.line);
            assert!(has(project, all) && !has(project, own), "{}", project.line);
            assert!(gateway.tenants.is_empty() && project.tenants == ["acme", "globex"]);
            assert!(project.line.starts_with("ACL SETUSER a-project "));
            for name in ["acme", "globex"] {
                for key in ["~lockgate:NAME:deny:*", "&lockgate:NAME:control"] {
                    assert!(has(project, &key.replace("NAME", name)), "{}", project.line);
                }
            }
            let selectors = match kind {
                LayerKind::PubSub => 2,
                _ => 0,
            };
            assert_eq!(project.line.matches('(').count(), selectors);
            assert!(text(&lines).contains("PREFIX-project"));
        }
        let alone = Usage {
            namespace: "acme.".to_owned(),
            ..usage(Some((LayerKind::PubSub, "a")))
        };
        assert_eq!(lines_at("h:1", &[&alone]).len(), 2, "no project of one");
    }
}
