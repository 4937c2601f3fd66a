//! The effective settings of one tenant: its own tables combined with those of the deployment.
//!
//! Only this file decides which Redis, layer and denylist a tenant has. The builder of tenants, the check of a
//! configuration, `doctor` and its ACL lines all use it. It neither parses nor connects anything.

use super::{
    Config, DenylistConfig, LayerKind, RedisConfig, Secret, TenantConfig, TlsConfig, Trust, Verify,
};

/// The effective settings of one tenant.
#[derive(Clone, Copy, Debug)]
pub struct Effective<'c> {
    /// The tenant's own tables.
    pub tenant: &'c TenantConfig,
    /// The deployment's `denylist` table.
    pub denylist: &'c DenylistConfig,
    /// The Redis of cached users and control messages: the tenant's, else the deployment's. `None`: both stay in this
    /// process.
    pub redis: Option<&'c Secret>,
    /// `[tls]`.
    tls: &'c TlsConfig,
    /// `[redis]`.
    deployment: &'c RedisConfig,
}

/// The trust of one tenant in the servers of its links.
#[derive(Clone, Debug, PartialEq)]
pub struct Trusts {
    /// In [`Effective::redis`].
    pub redis: Trust,
    /// In [`Effective::denylist_redis`].
    pub denylist: Trust,
    /// In [`Effective::layer_hosts`].
    pub layer: Trust,
    /// In the database of users.
    pub database: Trust,
    /// In the server of `jwk_url`.
    pub key_set: Trust,
}

impl Config {
    /// Returns the effective settings of `tenant`, which is one of this configuration.
    pub fn effective<'c>(&'c self, tenant: &'c TenantConfig) -> Effective<'c> {
        let own = tenant.redis.as_ref().and_then(|redis| redis.url.as_ref());
        Effective {
            tenant,
            denylist: &self.denylist,
            redis: own.or(self.redis.url.as_ref()),
            tls: &self.tls,
            deployment: &self.redis,
        }
    }

    /// Returns the trust in the database of the registry: the authorities of `[tls]`; its URL says the rest.
    pub fn registry_trust(&self) -> Trust {
        Trust {
            everywhere: self.tls.ca.clone(),
            ..Trust::default()
        }
    }

    /// Returns the trust in the Redis of the deployment.
    pub fn deployment_trust(&self) -> Trust {
        self.redis.trust(&self.tls)
    }
}

impl RedisConfig {
    fn trust(&self, tls: &TlsConfig) -> Trust {
        Trust {
            everywhere: tls.ca.clone(),
            own: self.ca.clone(),
            verify: Some(self.verify).filter(|verify| *verify != Verify::Full),
        }
    }
}

impl<'c> Effective<'c> {
    /// Returns the Redis of revocations. `None`: they stay in this process.
    pub fn denylist_redis(&self) -> Option<&'c Secret> {
        self.denylist.redis.as_ref().or(self.redis)
    }

    /// Returns the Redis of revocations if it differs from [`Effective::redis`].
    pub fn separate_denylist(&self) -> Option<&'c Secret> {
        let own = self.denylist.redis.as_ref();
        own.filter(|own| Some(*own) != self.redis)
    }

    /// Returns the Redis servers that carry events, in order: the layer's `hosts`, else the tenant's Redis. A layer of
    /// the kind `memory` ([`Effective::layer_kind`]) does not use them.
    pub fn layer_hosts(&self) -> Vec<&'c Secret> {
        let hosts = &self.tenant.layer.hosts;
        if hosts.is_empty() {
            self.redis.into_iter().collect()
        } else {
            hosts.iter().collect()
        }
    }

    /// Returns the trust in the tenant's servers. A tenant's `redis` table holds for its URL and for the `hosts` of its
    /// layer, the deployment's for the rest.
    pub fn trusts(&self) -> Trusts {
        let own = self.tenant.redis.as_ref();
        let deployment = self.deployment.trust(self.tls);
        let table = |own: Option<&RedisConfig>| own.map(|own| own.trust(self.tls));
        let with_url = own.filter(|own| own.url.is_some());
        let redis = table(with_url).unwrap_or_else(|| deployment.clone());
        let users = &self.tenant.users;
        Trusts {
            denylist: match &self.denylist.redis {
                Some(_) => deployment.clone(),
                None => redis.clone(),
            },
            layer: match self.tenant.layer.hosts.is_empty() {
                true => redis.clone(),
                false => table(own).unwrap_or(deployment),
            },
            redis,
            database: Trust {
                everywhere: self.tls.ca.clone(),
                own: users.ca.clone(),
                verify: users.verify,
            },
            key_set: Trust {
                everywhere: self.tls.ca.clone(),
                ..Trust::default()
            },
        }
    }

    /// Returns the layer's kind: as configured, else `sharded` if events have a cluster, `pubsub` if they have another Redis, and
    /// `memory` without one.
    pub fn layer_kind(&self) -> LayerKind {
        let hosts = self.layer_hosts();
        self.tenant.layer.kind.unwrap_or(match hosts.first() {
            Some(host) if names_cluster(host) => LayerKind::Sharded,
            Some(_) => LayerKind::PubSub,
            None => LayerKind::Memory,
        })
    }

    /// Returns the beginning of every group's name on the wire. A memory layer has no wire, so it has none.
    pub fn namespace(&self) -> &'c str {
        match self.layer_kind() {
            LayerKind::Memory => "",
            LayerKind::PubSub | LayerKind::Core | LayerKind::Sharded => {
                &self.tenant.layer.namespace
            }
        }
    }
}

/// Returns true if the scheme of a URL is that of a Redis Cluster.
pub fn names_cluster(url: &Secret) -> bool {
    let scheme = url.expose().split_once("://").map(|(scheme, _)| scheme);
    matches!(scheme, Some("redis+cluster" | "rediss+cluster"))
}

/// The prefix of Lockgate's own keys and channels.
const OWN_PREFIX: &str = "lockgate:";

/// Returns the fault of a prefix that does not separate its names from others on a shared Redis.
pub fn prefix_fault(prefix: &str) -> Option<&'static str> {
    match prefix {
        "" => Some("an empty prefix"),
        own if own.starts_with(OWN_PREFIX) => Some("a prefix that begins with lockgate:"),
        own if OWN_PREFIX.starts_with(own) => Some("a prefix that lockgate: begins with"),
        own if own.contains("__group__") => Some("a prefix with __group__"),
        _ => None,
    }
}

/// Returns true if layers with these prefixes and namespaces can produce the same name on one Redis server. Namespaces keep
/// tenants apart that have one prefix.
pub fn names_meet(one: (&str, &str), other: (&str, &str)) -> bool {
    let shares = one.0 == other.0 && prefix_fault(one.0).is_none();
    match shares && !one.1.is_empty() && !other.1.is_empty() {
        true => one.1.starts_with(other.1) || other.1.starts_with(one.1),
        false => prefixes_meet(one.0, other.0),
    }
}

/// Returns true if layers with these prefixes can produce the same name on one Redis server. The database number
/// does not separate channels. Do not ask for `memory` layers, which share no server.
fn prefixes_meet(one: &str, other: &str) -> bool {
    let faulty = prefix_fault(one).is_some() || prefix_fault(other).is_some();
    faulty || one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RedisConfig;

    fn config(deployment: Option<&str>, denylist: Option<&str>) -> Config {
        let mut config = Config::default();
        config.redis.url = deployment.map(Secret::from);
        config.denylist.redis = denylist.map(Secret::from);
        config
    }

    fn tenant(own: Option<&str>, hosts: &[&str], kind: Option<LayerKind>) -> TenantConfig {
        let mut tenant = TenantConfig {
            redis: own.map(|url| RedisConfig {
                url: Some(url.into()),
                ..RedisConfig::default()
            }),
            ..TenantConfig::default()
        };
        tenant.layer.hosts = hosts.iter().map(|url| Secret::from(*url)).collect();
        tenant.layer.kind = kind;
        tenant
    }

    fn shown(urls: impl IntoIterator<Item = &'static Secret>) -> Vec<&'static str> {
        urls.into_iter().map(Secret::expose).collect()
    }

    #[test]
    fn the_tenants_own_comes_before_the_deployments() {
        use LayerKind::{Core, Memory, PubSub, Sharded};
        const CLUSTER: &str = "redis+cluster://c";
        for (deployment, own, hosts, kind, redis, layer) in [
            (None, None, &[][..], None, None, (Memory, &[][..])),
            (Some("d"), None, &[], None, Some("d"), (PubSub, &["d"])),
            (Some("d"), Some("t"), &[], None, Some("t"), (PubSub, &["t"])),
            (
                Some(CLUSTER),
                None,
                &[],
                None,
                Some(CLUSTER),
                (Sharded, &[CLUSTER]),
            ),
            // Events may have another Redis than users.
            (
                Some(CLUSTER),
                None,
                &["h"],
                None,
                Some(CLUSTER),
                (PubSub, &["h"]),
            ),
            (None, Some("t"), &[], Some(Core), Some("t"), (Core, &["t"])),
            // Hosts alone are a Redis for events: such a layer used to be a memory layer once it was built.
            (None, None, &["h", "i"], None, None, (PubSub, &["h", "i"])),
            (
                Some("d"),
                None,
                &["h"],
                Some(Core),
                Some("d"),
                (Core, &["h"]),
            ),
            (
                Some("d"),
                None,
                &[],
                Some(Memory),
                Some("d"),
                (Memory, &["d"]),
            ),
        ] {
            let config = Box::leak(Box::new(config(deployment, None)));
            let tenant = Box::leak(Box::new(tenant(own, hosts, kind)));
            let effective = config.effective(tenant);
            assert_eq!(effective.redis.map(Secret::expose), redis);
            assert_eq!(effective.layer_kind(), layer.0);
            assert_eq!(shown(effective.layer_hosts()), layer.1);
            assert_eq!(effective.denylist_redis(), effective.redis);
            assert_eq!(effective.separate_denylist(), None);
        }
    }

    #[test]
    fn a_denylist_may_have_a_redis_of_its_own() {
        let plain = tenant(None, &[], None);
        for (deployment, denylist, all, separate) in [
            (Some("d"), Some("x"), Some("x"), Some("x")),
            (Some("d"), Some("d"), Some("d"), None),
            (None, Some("x"), Some("x"), Some("x")),
            (Some("d"), None, Some("d"), None),
            (None, None, None, None),
        ] {
            let config = config(deployment, denylist);
            let effective = config.effective(&plain);
            let shown = |url: Option<&Secret>| url.map(|url| url.expose().to_owned());
            assert_eq!(
                shown(effective.denylist_redis()),
                all.map(str::to_owned),
                "{deployment:?} {denylist:?}"
            );
            assert_eq!(
                shown(effective.separate_denylist()),
                separate.map(str::to_owned),
                "{deployment:?} {denylist:?}"
            );
        }
    }

    #[test]
    fn namespaces_keep_tenants_of_one_prefix_apart() {
        for (one, other, meet) in [
            (("a", "x."), ("a", "y."), false),
            (("a", "x."), ("a", "x.y."), true),
            (("a", "x."), ("a", "x."), true),
            (("a", "x."), ("a", ""), true),
            (("a", ""), ("a", ""), true),
            // Another prefix is no namespace: `ab` begins with `a` whatever follows.
            (("a", "x."), ("ab", "y."), true),
            (("a", "x."), ("b", "x."), false),
            (("", "x."), ("", "y."), true),
        ] {
            assert_eq!(names_meet(one, other), meet, "{one:?} {other:?}");
            assert_eq!(names_meet(other, one), meet, "{other:?} {one:?}");
        }
    }

    #[test]
    fn prefixes_meet_where_one_begins_with_the_other_or_is_faulty() {
        for (one, other) in [
            ("a", "a"),
            ("a", "ab"),
            ("", "a"),
            ("lock", "a"),
            ("lockgate:x", "a"),
            ("x__group__", "a"),
        ] {
            assert!(prefixes_meet(one, other), "{one} {other}");
            assert!(prefixes_meet(other, one), "{other} {one}");
        }
        for (one, other) in [("a", "b"), ("ab", "ac"), ("asgi", "asg2"), ("locker", "a")] {
            assert!(!prefixes_meet(one, other), "{one} {other}");
        }
    }
}
