//! Checks the trust in certificates: `ca` and `verify` wherever they stand.

use crate::config::{Authorities, Config, RedisConfig, Secret, Verify};
use crate::stores::database::DatabaseUrl;
use crate::stores::redis_url::RedisUrl;
use crate::stores::trust;

use super::Checker;

/// Warns of a server that nothing proves to be the right one.
const UNCHECKED: &str = "the certificate of the server is not checked: whatever answers at its address gets the password; name its authority in ca, \
     and take verify = \"none\" away";

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    for (key, authorities) in authorities(config) {
        if let Err(fault) = trust::check(authorities) {
            checker.fault(&key, fault);
        }
        if let Some(text) = expired(authorities) {
            checker.warn(&key, text);
        }
    }
    for key in unchecked(config) {
        checker.warn(&key, UNCHECKED);
    }
    redis("redis", &config.redis, of_deployment(config), checker);
    for (id, tenant) in &config.tenants {
        if let Some(own) = &tenant.redis {
            let hosts = tenant.layer.hosts.iter().collect();
            redis(&format!("tenants.{id}.redis"), own, hosts, checker);
        }
        let url = tenant.users.database.as_ref().map(DatabaseUrl::parse);
        let trust = config.effective(tenant).trusts().database;
        // A wrong URL is reported with its own key.
        if let Some(Ok(url)) = url
            && let Err(fault) = url.trusting(&trust)
        {
            checker.fault(&format!("tenants.{id}.users"), fault);
        }
    }
}

/// Returns every entry of every `ca`, with its key.
pub fn authorities(config: &Config) -> Vec<(String, &Authorities)> {
    let mut lists = vec![
        ("tls".to_owned(), &config.tls.ca),
        ("redis".to_owned(), &config.redis.ca),
    ];
    for (id, tenant) in &config.tenants {
        let own = tenant.redis.as_ref();
        lists.extend(own.map(|own| (format!("tenants.{id}.redis"), &own.ca)));
        lists.push((format!("tenants.{id}.users"), &tenant.users.ca));
    }
    let entries = lists.into_iter().flat_map(|(table, list)| {
        let entries = list.iter().enumerate();
        entries.map(move |(index, entry)| (format!("{table}.ca[{index}]"), entry))
    });
    entries.collect()
}

/// Returns the text about an entry with a certificate that has expired.
pub fn expired(authorities: &Authorities) -> Option<String> {
    let day = trust::expired(authorities)?;
    Some(format!(
        "a certificate of this authority expired on {day}: other programs refuse what it has signed; replace it"
    ))
}

/// Returns the key of the first authority that has expired, and the text about it. It fails the check of a configuration before
/// it is rolled out. A start goes on: a restart at night must not end all tenants for the certificate of one.
pub fn expired_authority(config: &Config) -> Option<(String, String)> {
    let mut entries = authorities(config).into_iter();
    entries.find_map(|(key, entry)| Some((key, expired(entry)?)))
}

/// Returns the keys of servers whose certificates are not checked.
pub fn unchecked(config: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    if config.redis.verify == Verify::Nothing {
        keys.push("redis.verify".to_owned());
    }
    for (id, tenant) in &config.tenants {
        let own = tenant.redis.as_ref().map(|own| own.verify);
        if own == Some(Verify::Nothing) {
            keys.push(format!("tenants.{id}.redis.verify"));
        }
        if tenant.users.verify == Some(Verify::Nothing) {
            keys.push(format!("tenants.{id}.users.verify"));
        }
    }
    keys
}

/// Returns the servers beside `[redis]` that its `ca` and `verify` hold for: the denylist's, and the hosts of layers of tenants
/// that have no `redis` table of their own.
fn of_deployment(config: &Config) -> Vec<&Secret> {
    let tenants = config.tenants.values();
    let hosts = tenants.filter(|tenant| tenant.redis.is_none());
    let hosts = hosts.flat_map(|tenant| &tenant.layer.hosts);
    config.denylist.redis.iter().chain(hosts).collect()
}

/// Reports `ca` and `verify` without a link that uses them. `others` are the servers that they hold for beside the table's own.
fn redis(table: &str, config: &RedisConfig, others: Vec<&Secret>, checker: &mut Checker<'_>) {
    let name = match config.ca.is_empty() {
        true if config.verify == Verify::Full => return,
        true => "verify",
        false => "ca",
    };
    let key = format!("{table}.{name}");
    let advice = "ca and verify are about certificates, which come with TLS alone";
    let mut urls = config.url.iter().chain(others).peekable();
    if urls.peek().is_none() {
        let found = format!("{name} without a url");
        checker.mistake(&key, found, "the url of this Redis", advice);
        return;
    }
    // A URL that cannot be read is reported with its own key, and may be meant to have TLS.
    if urls.all(|url| RedisUrl::parse(url).is_ok_and(|url| !url.tls())) {
        let found = format!("{name} beside URLs without TLS");
        checker.mistake(
            &key,
            found,
            "rediss://, rediss+sentinel:// or rediss+cluster://",
            advice,
        );
    }
}
