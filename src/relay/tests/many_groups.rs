//! A gap in very many groups with history, whose number clients choose.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::layer::ModelLayer;
use super::model::{RESUMING, relay};
use crate::channel_layer::Inbox;
use crate::event::Event;
use crate::hub::{Budget, Group, Member, Pace, Profile};
use crate::ids::GroupName;
use crate::metrics::{GapCause, TenantMetrics};
use crate::position::Position;
use crate::relay::reader::READERS;
use crate::tasks;

const GROUPS: usize = 2000;
/// Tasks of the test and of the relay beside its readers.
const OTHERS: usize = 4;

fn tasks_alive() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Before: each group had a task of its own at once, as long as its history could not be read.
#[tokio::test(start_paused = true)]
async fn a_gap_in_thousands_of_groups_starts_no_more_tasks_than_may_read() {
    let metrics = Arc::new(TenantMetrics::new(&"acme".parse().unwrap()));
    let inbox = Inbox::new(0, metrics.clone());
    let names: Vec<GroupName> = (0..GROUPS)
        .map(|number| format!("g{number}").as_str().into())
        .collect();
    let layer = Arc::new(ModelLayer::new(1, 100_000, &names, inbox.clone()));
    layer.steady();
    let relay = relay(layer.clone(), inbox, metrics);
    let _task = tasks::lasting("the relay of a test", relay.clone().run());
    let member = Member::new(Profile {
        delivery: RESUMING,
        send_queue: 64 * 1024 * 1024,
        ..Profile::default()
    });
    let hub = relay.hub();
    hub.admit(&member, None, &Budget::default()).unwrap();
    let groups: Vec<Arc<Group>> = { names.iter() }
        .map(|name| hub.groups().add(name, &member).0)
        .collect();
    for (group, name) in groups.iter().zip(&names) {
        let epoch = layer.epoch(name);
        group.history().seen(&Position { epoch, offset: 0 });
        layer.record(name, Event::new("t", [("n", 1_i64.into())]));
    }
    // It is down at first, and every group is tried meanwhile.
    layer.fail_for(Duration::from_secs(30));
    relay.gap(GapCause::Link, &mut Pace::default()).await;
    let began = Instant::now();
    let mut most = 0;
    let is_healing = || groups.iter().any(|group| group.history().is_healing());
    while is_healing() {
        most = most.max(tasks_alive());
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(began.elapsed() < Duration::from_secs(600));
    }
    assert!(began.elapsed() >= Duration::from_secs(30));
    assert!((2..=READERS + OTHERS).contains(&most), "{most} tasks");
    for group in &groups {
        assert_eq!(group.history().at().map(|at| at.offset), Some(1));
    }
    // The readers have nothing to do any more.
    while tasks_alive() > OTHERS {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(began.elapsed() < Duration::from_secs(600));
    }
    member.outbound().finish();
    relay.unregister(&member);
}
