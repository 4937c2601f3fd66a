//! The limits of the machine for the process: descriptors and memory.

use super::finding::{Findings, Severity};
use crate::config::{QueueBound, ServerConfig, print_size};
use crate::server::limits::{RESERVED, hard_descriptors, memory_limit, queue_bound, sockets_of};

/// The number of sockets below which a limit is probably a mistake.
const FEW: u64 = 1000;

/// Checks the limits of this process. A gateway with the same user and unit has the same limits.
pub(super) fn look(server: &ServerConfig) -> Findings {
    let mut findings = Findings::default();
    let (verdict, detail, advice) = descriptors(server.max_connections, hard_descriptors());
    findings.add(("this machine", "descriptors"), verdict, detail, advice);
    let (verdict, detail, advice) = memory(server.max_queue_bytes, memory_limit());
    findings.add(("this machine", "memory"), verdict, detail, advice);
    findings
}

fn descriptors(configured: u64, hard: u64) -> (Severity, String, String) {
    let possible = match configured {
        0 => sockets_of(hard),
        _ => hard.saturating_sub(RESERVED),
    };
    let needed = configured.saturating_add(RESERVED);
    if configured > possible {
        return (
            Severity::Warn,
            format!(
                "the hard limit {hard} allows {possible} sockets, server.max_connections is {configured}"
            ),
            format!("raise it to {needed}: ulimit -Hn, LimitNOFILE in systemd"),
        );
    }
    if configured == 0 && possible < FEW {
        return (
            Severity::Warn,
            format!("the hard limit {hard} allows {possible} sockets"),
            "raise it to the number of sockets that you plan plus 256: ulimit -Hn, LimitNOFILE in systemd".to_owned(),
        );
    }
    let most = if configured == 0 {
        possible
    } else {
        configured
    };
    (
        Severity::Ok,
        format!("the hard limit {hard} allows {most} sockets"),
        String::new(),
    )
}

fn memory(bound: QueueBound, limit: u64) -> (Severity, String, &'static str) {
    let bytes = queue_bound(bound, limit);
    let share = bytes as f64 / limit.max(1) as f64;
    let mib = |bytes: u64| print_size((bytes >> 20).max(1) << 20);
    let detail = format!(
        "server.max_queue_bytes is {}, {:.0}% of {}",
        mib(bytes),
        share * 100.0,
        mib(limit)
    );
    let verdict = match share {
        share if share >= 1.0 => Severity::Fail,
        share if share > 0.5 => Severity::Warn,
        _ => return (Severity::Ok, detail, ""),
    };
    let advice = "sockets and users need memory too, and the system kills a process over its limit: lower it to 25%";
    (verdict, detail, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_must_hold_the_sockets_and_what_else_is_open() {
        for (configured, hard, verdict) in [
            (0, 20_000, Severity::Ok),
            (0, 1024, Severity::Warn),
            (768, 1024, Severity::Ok),
            (769, 1024, Severity::Warn),
            (u64::MAX, u64::MAX, Severity::Warn),
            (0, u64::MAX, Severity::Ok),
        ] {
            assert_eq!(
                descriptors(configured, hard).0,
                verdict,
                "{configured} of {hard}"
            );
        }
        assert!(descriptors(20_000, 1024).2.contains("20256"));
    }

    #[test]
    fn queues_must_leave_memory_for_the_rest() {
        let gib = 1 << 30;
        for (bound, verdict) in [
            (QueueBound::Percent(25.0), Severity::Ok),
            (QueueBound::Percent(51.0), Severity::Warn),
            (QueueBound::Bytes(gib / 2), Severity::Ok),
            (QueueBound::Bytes(gib), Severity::Fail),
        ] {
            assert_eq!(memory(bound, gib).0, verdict, "{bound:?}");
        }
        assert_eq!(
            memory(QueueBound::Percent(25.0), gib).1,
            "server.max_queue_bytes is 256MiB, 25% of 1GiB"
        );
    }
}
