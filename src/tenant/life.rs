//! The stage of a tenant's life: a state machine without IO.
//!
//! `Configured` → `Heard` → `Served` → `Leaving` → `Gone`. The tenant's tasks and reloads report what happened; the
//! machine decides whether a socket may open.

use crate::error::Refusal;

/// The stage of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The parts are made and the tasks run.
    #[default]
    Configured,
    /// Redis has acknowledged the control channel. No announcement is missed from here on.
    Heard,
    /// The stored state was read, so a suspension is known. Sockets may open.
    Served,
    /// A reload has removed or replaced the tenant. No socket opens, and open sockets close.
    Leaving,
    /// The last socket has closed.
    Gone,
}

/// An event in the life of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Redis has acknowledged the control channel.
    ControlHeard,
    /// The stored state was read. An announcement that came during the read outweighs it.
    StateRead {
        /// The stored state is "suspended".
        suspended: bool,
        /// [`TenantLife::announcements`] when the read began.
        began_at: u64,
    },
    /// An operator announced a suspension.
    Suspended,
    /// An operator announced the end of a suspension.
    Resumed,
    /// Every dependency was checked. `Err` holds what an operator has to fix.
    Looked(Result<(), String>),
    /// A reload has applied a configuration that no longer uses these parts.
    Replaced,
    /// No socket is left.
    Emptied,
}

/// The life of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantLife {
    stage: Stage,
    suspended: bool,
    announcements: u64,
    obstacle: Option<String>,
    looked_at: bool,
}

impl TenantLife {
    /// Returns the life of a tenant that takes over the control channel of `self`, with what was heard there. It opens at once
    /// if its servers are known.
    pub fn passed_on(&self, are_servers_known: bool) -> Self {
        let stage = match self.stage {
            Stage::Leaving | Stage::Gone => Stage::Configured,
            Stage::Served if !are_servers_known => Stage::Heard,
            stage => stage,
        };
        Self {
            stage,
            obstacle: None,
            looked_at: false,
            ..self.clone()
        }
    }

    /// Applies one event. Returns true if the life changed.
    pub fn take(&mut self, happening: Happening) -> bool {
        let before = self.clone();
        match happening {
            Happening::ControlHeard if self.stage == Stage::Configured => self.stage = Stage::Heard,
            Happening::ControlHeard => {}
            // Before the control channel is heard, an announcement could be missed after this read.
            Happening::StateRead { .. } if self.stage == Stage::Configured => {}
            Happening::StateRead {
                suspended,
                began_at,
            } => {
                if began_at == self.announcements {
                    self.suspended = suspended;
                }
                self.stage = self.stage.max(Stage::Served);
            }
            Happening::Suspended | Happening::Resumed => {
                self.suspended = happening == Happening::Suspended;
                self.announcements += 1;
            }
            Happening::Looked(found) => {
                self.looked_at = true;
                self.obstacle = found.err();
            }
            Happening::Replaced => self.stage = self.stage.max(Stage::Leaving),
            Happening::Emptied if self.stage == Stage::Leaving => self.stage = Stage::Gone,
            Happening::Emptied => {}
        }
        *self != before
    }

    /// Returns `Ok` if a socket may open.
    ///
    /// # Errors
    /// The refusal of its handshake.
    pub fn admits(&self) -> Result<(), Refusal> {
        match self.stage {
            Stage::Heard | Stage::Served if self.suspended => Err(Refusal::TenantSuspended),
            Stage::Served if self.obstacle.is_none() => Ok(()),
            _ => Err(Refusal::Unavailable),
        }
    }

    /// Returns true while the tenant is on its way to be served, so that a short wait may change [`TenantLife::admits`].
    pub fn is_opening(&self) -> bool {
        self.stage < Stage::Served && !self.suspended && self.obstacle.is_none()
    }

    /// Returns true if readiness need not wait for the tenant: it is served, it leaves, or an obstacle is known.
    pub fn is_settled(&self) -> bool {
        self.obstacle.is_some()
            || self.stage >= Stage::Leaving
            || (self.stage == Stage::Served && self.looked_at)
    }

    /// The current stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns true if an operator has suspended the tenant.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// The reason that keeps it from being served until an operator acts.
    pub fn obstacle(&self) -> Option<&str> {
        self.obstacle.as_deref()
    }

    /// Returns true if such a reason keeps it from being served. A tenant that leaves is no longer meant to be.
    pub fn is_degraded(&self) -> bool {
        self.obstacle.is_some() && self.stage < Stage::Leaving
    }

    /// The number of operator announcements so far.
    pub fn announcements(&self) -> u64 {
        self.announcements
    }
}

#[cfg(test)]
mod tests {
    use super::Happening::*;
    use super::*;

    fn read(suspended: bool, began_at: u64) -> Happening {
        StateRead {
            suspended,
            began_at,
        }
    }

    fn lived(happenings: &[Happening]) -> TenantLife {
        let mut life = TenantLife::default();
        for happening in happenings {
            life.take(happening.clone());
        }
        life
    }

    #[test]
    fn a_socket_opens_once_the_control_channel_is_heard_and_the_state_is_known() {
        let wrong = || Looked(Err("no column".to_owned()));
        let unavailable = Err(Refusal::Unavailable);
        let suspended = Err(Refusal::TenantSuspended);
        for (happenings, stage, admits) in [
            (&[][..], Stage::Configured, unavailable),
            (&[ControlHeard], Stage::Heard, unavailable),
            (&[read(false, 0)], Stage::Configured, unavailable),
            (&[read(true, 0), ControlHeard], Stage::Heard, unavailable),
            (&[Looked(Ok(()))], Stage::Configured, unavailable),
            (&[ControlHeard, read(false, 0)], Stage::Served, Ok(())),
            (&[ControlHeard, read(true, 0)], Stage::Served, suspended),
            (&[ControlHeard, Suspended], Stage::Heard, suspended),
            // The read began before the announcement came.
            (
                &[ControlHeard, Suspended, read(false, 0)],
                Stage::Served,
                suspended,
            ),
            (
                &[ControlHeard, Suspended, Resumed, read(true, 0)],
                Stage::Served,
                Ok(()),
            ),
            (
                &[ControlHeard, Suspended, read(false, 1)],
                Stage::Served,
                Ok(()),
            ),
            (
                &[ControlHeard, read(false, 0), wrong()],
                Stage::Served,
                unavailable,
            ),
            (
                &[ControlHeard, read(false, 0), wrong(), Looked(Ok(()))],
                Stage::Served,
                Ok(()),
            ),
            (
                &[ControlHeard, read(true, 0), wrong()],
                Stage::Served,
                suspended,
            ),
            // A link that comes back is heard again and changes nothing.
            (
                &[ControlHeard, read(false, 0), ControlHeard],
                Stage::Served,
                Ok(()),
            ),
        ] {
            let life = lived(happenings);
            assert_eq!(
                (life.stage(), life.admits()),
                (stage, admits),
                "{happenings:?}"
            );
        }
    }

    #[test]
    fn a_tenant_that_leaves_admits_nothing_and_never_comes_back() {
        for before in [&[][..], &[ControlHeard], &[ControlHeard, read(false, 0)]] {
            let mut life = lived(before);
            assert!(!life.take(Emptied), "{before:?}");
            life.take(Replaced);
            for late in [ControlHeard, read(false, 0), Looked(Ok(())), Replaced] {
                life.take(late);
                assert_eq!(life.stage(), Stage::Leaving, "{before:?}");
                assert_eq!(life.admits(), Err(Refusal::Unavailable), "{before:?}");
            }
            life.take(Emptied);
            life.take(ControlHeard);
            assert_eq!(life.stage(), Stage::Gone, "{before:?}");
        }
    }

    #[test]
    fn a_tenant_is_degraded_until_its_obstacle_is_gone_or_it_leaves() {
        let wrong = || Looked(Err("no column".to_owned()));
        for (happenings, expected) in [
            (&[][..], false),
            (&[wrong()], true),
            (&[ControlHeard, read(false, 0), wrong()], true),
            (&[wrong(), Looked(Ok(()))], false),
            (&[wrong(), Replaced], false),
            (&[Replaced, wrong()], false),
        ] {
            let life = lived(happenings);
            assert_eq!(life.is_degraded(), expected, "{happenings:?}");
        }
    }

    #[test]
    fn what_was_heard_is_passed_on_with_the_control_channel() {
        let mut served = lived(&[
            ControlHeard,
            Suspended,
            read(true, 1),
            Looked(Err("x".into())),
        ]);
        let next = served.passed_on(true);
        assert_eq!(next.stage(), Stage::Served);
        assert_eq!(next.admits(), Err(Refusal::TenantSuspended));
        assert_eq!((next.obstacle(), next.is_settled()), (None, false));
        assert_eq!(lived(&[ControlHeard]).passed_on(true).stage(), Stage::Heard);
        let unknown = served.passed_on(false);
        assert_eq!(unknown.stage(), Stage::Heard);
        // Nothing tells whether it had come so far before.
        served.take(Replaced);
        assert_eq!(served.passed_on(true).stage(), Stage::Configured);
    }

    #[test]
    fn readiness_waits_until_a_tenant_is_served_or_it_is_known_why_not() {
        let (read, looked) = (|| read(false, 0), || Looked(Ok(())));
        for (happenings, opening, settled) in [
            (&[][..], true, false),
            (&[ControlHeard, read()], false, false),
            (&[looked()], true, false),
            (&[ControlHeard, looked()], true, false),
            (&[ControlHeard, read(), looked()], false, true),
            (&[Looked(Err("x".to_owned()))], false, true),
            (&[Replaced], false, true),
        ] {
            let life = lived(happenings);
            let seen = (life.is_opening(), life.is_settled());
            assert_eq!(seen, (opening, settled), "{happenings:?}");
        }
    }
}
