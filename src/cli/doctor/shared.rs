//! Verdicts over a Redis server that several parties use: its users must outlive a restart, and none of them may fill or stop
//! it. Each is a severity, the observation and the advice.

use super::finding::Severity;
use crate::event::MAX_PAYLOAD;
use crate::stores::inspection::Facts;

/// The most memory of all clients (`maxmemory-clients`) that keeps one transaction short. A million queued commands take
/// about 45 MB, and the server 0.25 s to execute.
const CLIENT_MEMORY: u64 = 64 * 1024 * 1024;

/// The advice for a server that tenants share.
pub(super) const BOUNDS: &str = "set proto-max-bulk-len 8mb, lazyfree-lazy-expire yes, maxmemory-clients 64mb (Redis 7) and maxmemory with noeviction";

/// Tells whether a restart forgets the users of the server. `has_users` is true if the login is not the default user.
pub(super) fn users(has_users: bool, facts: &Facts) -> (Severity, String, &'static str) {
    let not_known =
        |path: &str| format!("in {path}; the server does not say whether all are saved");
    match (facts.acl_file.as_deref(), facts.config_file.as_deref()) {
        (None, _) => (
            Severity::Note,
            "unknown: the login may not ask (CONFIG GET aclfile)".to_owned(),
            "a restart forgets users that are not saved: set aclfile and run ACL SAVE, or run CONFIG REWRITE",
        ),
        (Some(""), None | Some("")) if has_users => (
            Severity::Warn,
            "kept nowhere: a restart forgets every user, and all logins fail then".to_owned(),
            "start the server with aclfile, and run ACL SAVE after each change",
        ),
        (Some(""), None | Some("")) => (
            Severity::Note,
            "kept nowhere: users made by ACL SETUSER end with a restart".to_owned(),
            "start the server with aclfile before you make users",
        ),
        (Some(""), Some(path)) => (
            Severity::Note,
            not_known(path),
            "run CONFIG REWRITE after each ACL SETUSER",
        ),
        (Some(path), _) => (
            Severity::Note,
            not_known(path),
            "run ACL SAVE after each ACL SETUSER",
        ),
    }
}

/// Tells what one tenant's back end can take from the others on a server that tenants share. ACL rules do not bound it.
pub(super) fn bounds(facts: &Facts) -> (Severity, String, &'static str) {
    let Some(max_bulk) = facts.max_bulk else {
        let unknown = "unknown: the login may not ask (CONFIG GET proto-max-bulk-len)";
        return (Severity::Note, unknown.to_owned(), BOUNDS);
    };
    let mut faults = Vec::new();
    if max_bulk > MAX_PAYLOAD as u64 {
        faults.push(format!("send a value or message of {max_bulk} bytes"));
    }
    let bounded = { facts.client_memory }.is_some_and(|most| (1..=CLIENT_MEMORY).contains(&most));
    if !bounded {
        faults.push("stop the server by a long transaction".to_owned());
    }
    if facts.lazy_expire == Some(false) {
        faults.push("stop the server by a large key that expires".to_owned());
    }
    if facts.maxmemory == Some(0) {
        faults.push("fill the machine's memory".to_owned());
    }
    match faults.is_empty() {
        true => {
            let bounded = "values, transactions, ends of keys and memory are bounded";
            (Severity::Ok, bounded.to_owned(), "")
        }
        false => {
            let faults = faults.join("; ");
            let detail = format!("tenants share it, and one tenant's back end may {faults}");
            (Severity::Warn, detail, BOUNDS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_bound_of_a_shared_server_is_told() {
        let tight = Facts {
            max_bulk: Some(8 << 20),
            client_memory: Some(64 << 20),
            maxmemory: Some(1 << 30),
            lazy_expire: Some(true),
            ..Facts::default()
        };
        let open = Facts {
            max_bulk: Some(512 << 20),
            client_memory: Some(0),
            maxmemory: Some(0),
            ..Facts::default()
        };
        let old = Facts {
            client_memory: None,
            ..tight.clone()
        };
        // Before, the end of one tenant's key of 200 MB could stop the server, and no one was told.
        let eager = Facts {
            lazy_expire: Some(false),
            ..tight.clone()
        };
        for (facts, severity, words) in [
            (&tight, Severity::Ok, &["bounded"][..]),
            (
                &open,
                Severity::Warn,
                &["536870912 bytes", "transaction", "memory"],
            ),
            (&old, Severity::Warn, &["transaction"]),
            (&eager, Severity::Warn, &["expires"]),
            (&Facts::default(), Severity::Note, &["unknown"]),
        ] {
            let (found, detail, _) = bounds(facts);
            assert_eq!(found, severity, "{detail}");
            assert!(words.iter().all(|word| detail.contains(word)), "{detail}");
        }
    }

    #[test]
    fn users_that_a_restart_forgets_are_told() {
        let facts = |acl_file: Option<&str>, config_file: &str| Facts {
            acl_file: acl_file.map(str::to_owned),
            config_file: Some(config_file.to_owned()),
            ..Facts::default()
        };
        for (has_users, facts, severity, advice) in [
            (true, facts(Some(""), ""), Severity::Warn, "aclfile"),
            (false, facts(Some(""), ""), Severity::Note, "aclfile"),
            (
                true,
                facts(Some(""), "/etc/redis.conf"),
                Severity::Note,
                "CONFIG REWRITE",
            ),
            (
                true,
                facts(Some("/etc/users.acl"), "/etc/redis.conf"),
                Severity::Note,
                "ACL SAVE",
            ),
            (true, facts(None, ""), Severity::Note, "ACL SAVE"),
        ] {
            let (found, detail, found_advice) = users(has_users, &facts);
            assert_eq!(found, severity, "{detail}");
            assert!(found_advice.contains(advice), "{found_advice}");
        }
    }
}
