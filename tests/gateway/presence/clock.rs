//! Presence on a Redis whose clock steps.

use std::collections::BTreeSet;

use super::{HEALED, LAYERS, enter, house, present};
use crate::support::database::{ALICE, BOB};
use crate::support::socket::Socket;
use crate::support::{PATIENCE, RedisServer, within};

/// The seconds by which the clock of Redis is ahead of the machine's, one after the other. By two hours all keys expire.
const STEPS: [i64; 6] = [1800, 0, -1800, 0, 7200, 0];
const CAROL: &str = "100";

/// Reads frames until these users are the ones that the socket was told of. Joins and leaves take turns.
async fn knows(socket: &mut Socket, known: &mut BTreeSet<String>, users: &[&str]) {
    let wanted: BTreeSet<String> = users.iter().map(|&user| user.to_owned()).collect();
    let all = async {
        while *known != wanted {
            let frame = socket.next_json_within(HEALED).await;
            let user = frame["user"]["id"].as_str().expect("a user").to_owned();
            let is_new = match frame["type"].as_str() {
                Some("lockgate.join") => known.insert(user),
                Some("lockgate.leave") => known.remove(&user),
                _ => false,
            };
            assert!(is_new, "{frame} beside {known:?}");
        }
    };
    within(HEALED, &format!("{users:?}"), all).await;
}

/// Before: one who left stayed for the others until a clock that was put back had caught up.
#[tokio::test]
async fn presence_is_the_truth_again_after_the_clock_of_redis_has_stepped() {
    for layer in LAYERS {
        let redis = RedisServer::with_clock().await;
        let rule = "notify = true, linger = '5s'";
        let database = super::many_users().await;
        let house = house(2, layer, rule).users(&database);
        let gateway = house.redis(&redis.url()).start().await;
        let mut alice = enter(&gateway, 0, "a", ALICE).await;
        let _bob = enter(&gateway, 1, "a", BOB).await;
        let mut known = BTreeSet::new();
        knows(&mut alice, &mut known, &[ALICE, BOB]).await;
        for step in STEPS {
            println!("{layer}: {step} s");
            let carol = enter(&gateway, 1, "a", CAROL).await;
            knows(&mut alice, &mut known, &[ALICE, BOB, CAROL]).await;
            drop(carol);
            // She lingers.
            present(&gateway, (0, "a"), &[(ALICE, 1), (BOB, 1)], PATIENCE).await;
            redis.step_clock(step);
            knows(&mut alice, &mut known, &[ALICE, BOB]).await;
            for replica in 0..2 {
                present(&gateway, (replica, "a"), &[(ALICE, 1), (BOB, 1)], HEALED).await;
            }
            knows(&mut alice, &mut known, &[ALICE, BOB]).await;
        }
    }
}
