//! Faults without a row: tests hold them in other ways, or this version cannot have them.

use crate::row::{Absent, Why};

/// All of them.
pub(crate) fn absent() -> Vec<Absent> {
    let held = |number, name, test| Absent {
        number,
        name,
        why: Why::Held(test),
    };
    let left = |number, name, reason| Absent {
        number,
        name,
        why: Why::Left(reason),
    };
    let cluster = "tests/gateway/outside/cluster/mod.rs::a_cluster_loses_nothing_unsaid_while_slots_move_and_a_master_dies";
    vec![
        held(
            13,
            "a split brain: the far side takes everything and delivers nothing",
            "tests/parts/channel_layer/faults.rs::a_link_that_hears_nothing_is_replaced_and_announced",
        ),
        left(
            16,
            "a slot moves, classic pub/sub",
            "a classic layer on a cluster is refused by `config check`",
        ),
        held(19, "MOVED, ASK, CROSSSLOT", cluster),
        held(
            20,
            "the right to a channel is missing from the start",
            "tests/parts/channel_layer/faults.rs::a_missing_permission_concerns_one_tenant_and_heals_when_granted",
        ),
        left(
            50,
            "accept fails for another reason than descriptors",
            "no such failure can be made from outside of the process; row 49 has the one that can",
        ),
        left(
            51,
            "the memory limit is near",
            "the gateway sheds by `server.max_queue_bytes`, which row 45 fills, and not by the limit of the machine",
        ),
        left(
            52,
            "the kernel ends the process for its memory",
            "that end is a SIGKILL: row 37",
        ),
        held(
            53,
            "the disk of the log is full",
            "tests/gateway/operations/machine.rs::a_full_disk_under_the_log_harms_no_socket",
        ),
        held(
            56,
            "the key set is absent at the start",
            "tests/parts/tokens/hostile_keys.rs::key_sets_that_cannot_be_loaded_refuse_no_token",
        ),
        held(
            57,
            "the key set is absent later",
            "tests/parts/tokens/hostile_keys.rs::key_sets_that_cannot_be_loaded_refuse_no_token",
        ),
        held(
            58,
            "the key set is slow, endless, large, or elsewhere",
            "tests/parts/tokens/hostile_keys.rs::key_sets_that_cannot_be_loaded_refuse_no_token",
        ),
        held(
            59,
            "the key set rotates",
            "tests/parts/tokens/hostile_keys.rs::a_rotation_finds_each_key",
        ),
        held(
            60,
            "the key set lies",
            "tests/parts/tokens/hostile_keys.rs::key_sets_that_lie",
        ),
        left(
            61,
            "a name is resolved to nothing, or to a server of before",
            "names are the machine's; row 11 leads one of ours elsewhere, behind a proxy",
        ),
        held(
            62,
            "the certificate of Redis is not trusted",
            "tests/parts/channel_layer/tls.rs::a_server_without_a_trusted_certificate_gets_no_password",
        ),
        left(
            63,
            "a task of a connection panics",
            "no input is known that makes one",
        ),
        left(
            64,
            "a thread of the runtime is starved",
            "no input is known that makes one; row 38 stops all of them",
        ),
    ]
}
