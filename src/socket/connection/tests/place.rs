//! The place of a socket in the occupancy, which the saturation counts.

use super::*;

impl Default for Desk {
    fn default() -> Self {
        Self {
            occupancy: Occupancy::new(1),
            began: AtomicUsize::default(),
            seen: Mutex::default(),
            ends: Notify::default(),
            disconnected: AtomicBool::default(),
        }
    }
}

/// Before, the saturation left out a socket that says goodbye: the replica seemed empty, while it refused handshakes.
#[tokio::test]
async fn a_socket_that_says_goodbye_has_its_place_still() {
    let desk = Arc::<Desk>::default();
    let mut ready = socket(&desk);
    let relay = ready.wire.registration.relay().clone();
    // The beginning and the end of a goodbye, which lasts until the test goes on.
    ready.wire.registration.leave();
    assert_eq!(relay.hub().len(), 0);
    assert_eq!(desk.occupancy.taken(), desk.occupancy.most());
    assert_eq!(desk.occupancy.saturation(), 1.0);
    assert!(desk.occupancy.enter().is_none());
    ready.wire.registration.end();
    assert_eq!(desk.occupancy.saturation(), 1.0, "its consumer is told");
    drop(ready);
    assert_eq!(desk.occupancy.saturation(), 0.0);
    assert!(desk.occupancy.enter().is_some());
}
