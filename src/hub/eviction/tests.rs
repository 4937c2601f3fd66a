//! Handshakes, refreshes and revocations in every order, against a model.

use proptest::prelude::*;
use proptest::sample::Index as Pick;

use super::super::{Budget, Hub, NextToken, PendingPlace, Profile, Renewed};
use super::*;
use crate::close_code::CloseReason;

/// A token of the model: its id, and the time at which it was issued.
type Token = (u8, u8);

#[derive(Clone, Debug)]
enum Step {
    /// A socket opens, of this user.
    Open(u8, Token),
    /// A socket begins to get another token.
    Begin(Pick, Token),
    /// A refresh comes to its end.
    Finish(Pick),
    /// A refresh is given up, as by a socket that closes.
    Drop(Pick),
    Revoke(RevocationTarget),
    /// `evict_pending` of a refresh, as the recheck calls it.
    Recheck(Pick),
    /// A user is invalidated.
    Invalidate(u8),
    /// A socket leaves.
    Leave(Pick),
}

struct Socket {
    member: Arc<Member>,
    user: u8,
    token: Token,
    closed: bool,
    left: bool,
}

struct Refresh {
    place: PendingPlace,
    socket: usize,
    token: Token,
    revoked: bool,
    stale: bool,
}

fn jti((id, _): Token) -> Jti {
    format!("t{id}").into()
}

fn user(id: u8) -> UserId {
    format!("u{id}").into()
}

fn issued_at((_, at): Token) -> Option<f64> {
    Some(f64::from(at))
}

fn concerns(target: &RevocationTarget, of: u8, token: Token) -> bool {
    match target {
        RevocationTarget::Token(revoked) => *revoked == jti(token),
        RevocationTarget::User(whose, at) => *whose == user(of) && f64::from(token.1) <= *at,
        RevocationTarget::All(at) => f64::from(token.1) <= *at,
    }
}

#[derive(Default)]
struct World {
    hub: Arc<Hub>,
    sockets: Vec<Socket>,
    refreshes: Vec<Refresh>,
}

impl World {
    fn open(&mut self, of: u8, token: Token) {
        let member = Member::new(Profile {
            user: Some(user(of)),
            jti: Some(jti(token)),
            issued_at: issued_at(token),
            channel: rand::random(),
            ..Profile::default()
        });
        self.hub.admit(&member, None, &Budget::default()).unwrap();
        self.sockets.push(Socket {
            member,
            user: of,
            token,
            closed: false,
            left: false,
        });
    }

    fn begin(&mut self, socket: usize, token: Token) {
        let Socket {
            member, user: of, ..
        } = &self.sockets[socket];
        let pending = Pending::new(user(*of), Some(jti(token)), issued_at(token));
        self.refreshes.push(Refresh {
            place: self.hub.expect(pending.for_socket(Some(member.clone()))),
            socket,
            token,
            revoked: false,
            stale: false,
        });
    }

    fn finish(&mut self, refresh: Refresh) {
        let socket = &mut self.sockets[refresh.socket];
        let next = NextToken {
            jti: Some(jti(refresh.token)),
            issued_at: issued_at(refresh.token),
            expires_at: None,
            password: None,
        };
        let renewed = self
            .hub
            .renew(&socket.member, next, refresh.place.pending());
        let expected = match refresh.revoked {
            true => Renewed::Revoked,
            false if socket.closed || socket.left => Renewed::Closing,
            false => Renewed::Done {
                stale: refresh.stale,
            },
        };
        assert_eq!(renewed, expected);
        if matches!(renewed, Renewed::Done { .. }) {
            socket.token = refresh.token;
        }
    }

    fn revoke(&mut self, target: &RevocationTarget) {
        let mut expected = 0;
        for socket in &mut self.sockets {
            let hit = !socket.left && concerns(target, socket.user, socket.token);
            expected += usize::from(hit && !socket.closed);
            socket.closed |= hit;
        }
        for refresh in &mut self.refreshes {
            let socket = &mut self.sockets[refresh.socket];
            if concerns(target, socket.user, refresh.token) {
                refresh.revoked = true;
                expected += usize::from(!socket.closed);
                socket.closed = true;
            }
        }
        let frame = CloseReason::TokenRevoked.frame();
        assert_eq!(self.hub.evict(target, &frame), expected, "{target:?}");
    }

    fn recheck(&mut self, refresh: usize) {
        let refresh = &mut self.refreshes[refresh];
        refresh.revoked = true;
        let own = self.sockets[refresh.socket].user;
        let mut expected = 0;
        for (at, socket) in self.sockets.iter_mut().enumerate() {
            let same = socket.user == own && socket.token == refresh.token && !socket.left;
            if (same || at == refresh.socket) && !socket.closed {
                expected += 1;
                socket.closed = true;
            }
        }
        let frame = CloseReason::TokenRevoked.frame();
        let closed = self.hub.evict_pending(refresh.place.pending(), &frame);
        assert_eq!(closed, expected);
    }

    fn take(&mut self, step: Step) {
        let (sockets, refreshes) = (self.sockets.len(), self.refreshes.len());
        match step {
            Step::Open(of, token) => self.open(of, token),
            Step::Begin(at, token) if sockets > 0 => self.begin(at.index(sockets), token),
            Step::Finish(at) if refreshes > 0 => {
                let refresh = self.refreshes.swap_remove(at.index(refreshes));
                self.finish(refresh);
            }
            Step::Drop(at) if refreshes > 0 => {
                drop(self.refreshes.swap_remove(at.index(refreshes)));
            }
            Step::Revoke(target) => self.revoke(&target),
            Step::Recheck(at) if refreshes > 0 => self.recheck(at.index(refreshes)),
            Step::Invalidate(of) => {
                self.hub.mark_stale(&user(of));
                for refresh in &mut self.refreshes {
                    refresh.stale |= self.sockets[refresh.socket].user == of;
                }
            }
            Step::Leave(at) if sockets > 0 => {
                let socket = &mut self.sockets[at.index(sockets)];
                drop(self.hub.unregister(&socket.member));
                socket.left = true;
            }
            _ => {}
        }
    }

    fn check(&self) {
        for socket in &self.sockets {
            assert_eq!(socket.member.outbound().is_closing(), socket.closed);
            assert_eq!(socket.member.jti(), Some(jti(socket.token)));
            assert_eq!(socket.member.issued_at(), issued_at(socket.token));
        }
        assert_eq!(self.hub.pending().len(), self.refreshes.len());
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let token = || (0..4u8, 0..6u8);
    let target = prop_oneof![
        (0..4u8).prop_map(|id| RevocationTarget::Token(jti((id, 0)))),
        (0..3u8, 0..6u8).prop_map(|(of, at)| RevocationTarget::User(user(of), at.into())),
        (0..2u8).prop_map(|at| RevocationTarget::All(at.into())),
    ];
    let step = prop_oneof![
        4 => (0..3u8, token()).prop_map(|(of, token)| Step::Open(of, token)),
        6 => (any::<Pick>(), token()).prop_map(|(at, token)| Step::Begin(at, token)),
        5 => any::<Pick>().prop_map(Step::Finish),
        1 => any::<Pick>().prop_map(Step::Drop),
        2 => target.prop_map(Step::Revoke),
        1 => any::<Pick>().prop_map(Step::Recheck),
        1 => (0..3u8).prop_map(Step::Invalidate),
        1 => any::<Pick>().prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    /// A revocation closes exactly the sockets whose token it concerns, and those that are about to get such a token; a
    /// refresh ends as the model says, whatever fell between its beginning and its end.
    #[test]
    fn a_revocation_finds_a_socket_by_its_token_and_by_the_one_that_it_is_about_to_get(steps in steps()) {
        let mut world = World::default();
        for step in steps {
            world.take(step);
            world.check();
        }
    }
}
