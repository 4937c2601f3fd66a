//! The life of one subscriber link: attempts, connections, losses. [`LinkLife`] is the state, without IO; [`keep`] drives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::error::{Dependency, ErrorKind};
use crate::metrics::GapCause;
use crate::stores::backoff::Backoff;
use crate::stores::standing::{LinkStanding, LinkWords};

use super::dial::LinkError;

/// Time between two requests for a channel or key that Redis refuses; an operator may have granted it meanwhile.
pub(in crate::channel_layer) const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// The public state of a link's task.
#[derive(Default)]
pub(in crate::channel_layer) struct Status {
    /// There is a connection, and every wish from before it is answered.
    ready: AtomicBool,
    /// The reason why there is no connection; `None` while there is one, and before the first attempt.
    failure: Mutex<Option<ErrorKind>>,
}

impl Status {
    /// Makes the status of what has never connected, for this reason.
    pub(in crate::channel_layer) fn failed(kind: ErrorKind) -> Self {
        Self {
            failure: Mutex::new(Some(kind)),
            ..Self::default()
        }
    }

    pub(in crate::channel_layer) fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(in crate::channel_layer) fn failure(&self) -> Option<ErrorKind> {
        *self.failure.lock()
    }
}

/// The end of a connection.
pub(in crate::channel_layer) enum End {
    /// The last user has left the link.
    Stopped,
    /// The connection or the server is gone.
    Lost(LinkError),
    /// The server takes commands, but messages do not arrive here.
    Deaf,
}

/// A lost connection that users are told of once everything is restored.
#[derive(Clone, Copy, Debug)]
pub(in crate::channel_layer) struct Loss {
    pub(in crate::channel_layer) cause: GapCause,
    pub(in crate::channel_layer) since: Instant,
}

/// The state of one link over all its connections.
pub(in crate::channel_layer) struct LinkLife {
    standing: LinkStanding,
    backoff: Backoff,
    status: Arc<Status>,
    /// The time at which the connection was made; `None` while there is none.
    connected: Option<Instant>,
    /// The first loss since everything was last restored.
    loss: Option<Loss>,
    /// Everything is restored on this connection.
    whole: bool,
}

impl LinkLife {
    pub(in crate::channel_layer) fn new(
        endpoint: &str,
        words: LinkWords,
        status: Arc<Status>,
    ) -> Self {
        Self {
            standing: LinkStanding::new(Dependency::Redis, endpoint, words),
            backoff: Backoff::default(),
            status,
            connected: None,
            loss: None,
            whole: false,
        }
    }

    /// `host:port`.
    pub(in crate::channel_layer) fn endpoint(&self) -> &str {
        self.standing.endpoint()
    }

    fn connected(&mut self, now: Instant) {
        self.standing.up();
        *self.status.failure.lock() = None;
        self.connected = Some(now);
    }

    /// Notes that a connection failed or ended. Returns the cause of the gap for its users; `None` if the link was stopped.
    fn ended(&mut self, end: End, now: Instant) -> Option<GapCause> {
        let (cause, error) = match end {
            End::Stopped => return None,
            End::Lost(error) => (GapCause::Link, error),
            End::Deaf => {
                let text = "canaries did not come back";
                (GapCause::Canary, LinkError::new(ErrorKind::Other, text))
            }
        };
        self.whole = false;
        self.status.ready.store(false, Ordering::Release);
        *self.status.failure.lock() = Some(error.kind);
        self.standing.down(error.kind, &error.text);
        // A failed attempt is not a loss: no message could have come through it.
        if let Some(made) = self.connected.take() {
            self.backoff.lived(now - made);
            self.loss.get_or_insert(Loss { cause, since: now });
        }
        Some(cause)
    }

    /// Returns true if everything is restored on this connection.
    pub(in crate::channel_layer) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Notes that everything is restored. The first call on a connection returns the loss before it, if there was one.
    pub(in crate::channel_layer) fn restored(&mut self) -> Option<Loss> {
        self.whole = true;
        self.status.ready.store(true, Ordering::Release);
        self.loss.take()
    }
}

/// The work on a link. Pub/sub and core wait with different commands.
pub(in crate::channel_layer) trait Session: Send {
    /// A connection that is logged in.
    type Connection: Send;
    /// An order of a user of the link.
    type Order: Send;

    /// Opens a connection to the server's present address.
    fn connect(&self) -> BoxFuture<'static, Result<Self::Connection, LinkError>>;

    /// The queue of orders. It has no bound, because leaving cannot wait; the users of the link bound it.
    fn orders(&mut self) -> &mut mpsc::UnboundedReceiver<Self::Order>;

    /// Carries out one order.
    fn obey(&mut self, order: Self::Order);

    /// Serves one connection from its first command to its end.
    fn serve(
        &mut self,
        connection: Self::Connection,
        life: &mut LinkLife,
    ) -> impl Future<Output = End> + Send;

    /// Resets the state of a connection that ended or could not be made.
    fn lost(&mut self, cause: GapCause);
}

/// Keeps a link until its last user leaves.
pub(in crate::channel_layer) async fn keep(mut session: impl Session, mut life: LinkLife) {
    loop {
        let attempt = session.connect();
        let Some(attempt) = meanwhile(&mut session, attempt).await else {
            return;
        };
        let end = match attempt {
            Ok(connection) => {
                life.connected(Instant::now());
                session.serve(connection, &mut life).await
            }
            Err(error) => End::Lost(error),
        };
        let Some(cause) = life.ended(end, Instant::now()) else {
            return;
        };
        session.lost(cause);
        let pause = sleep(life.backoff.pause());
        if meanwhile(&mut session, pause).await.is_none() {
            return;
        }
    }
}

/// Waits for `future` and carries out orders meanwhile; `None` if the link has no user left.
async fn meanwhile<S: Session, T>(session: &mut S, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return Some(done),
            order = session.orders().recv() => {
                let order = order?;
                session.obey(order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const WORDS: LinkWords = LinkWords {
        refused: "refused",
        lost: "lost",
    };

    fn life() -> (LinkLife, Arc<Status>) {
        let status = Arc::new(Status::default());
        (LinkLife::new("h:1", WORDS, status.clone()), status)
    }

    fn lost(kind: ErrorKind) -> End {
        End::Lost(LinkError::new(kind, "it is gone"))
    }

    #[test]
    fn a_link_is_ready_once_all_is_restored_and_tells_the_first_loss() {
        let (mut life, status) = life();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // A failed attempt is not a loss: no message could have come through it.
        let cause = life.ended(lost(ErrorKind::Io), at(0));
        assert_eq!(cause, Some(GapCause::Link));
        assert_eq!(
            (status.ready(), status.failure()),
            (false, Some(ErrorKind::Io))
        );
        life.connected(at(1));
        assert_eq!((status.ready(), status.failure()), (false, None));
        assert!(!life.is_whole() && life.restored().is_none());
        assert!(life.is_whole() && status.ready());

        assert_eq!(life.ended(End::Deaf, at(2)), Some(GapCause::Canary));
        assert!(!status.ready());
        // Two connections end before everything is restored.
        for seconds in [3, 4] {
            life.connected(at(seconds));
            assert!(!life.is_whole());
            let cause = life.ended(lost(ErrorKind::Auth), at(seconds));
            assert_eq!(cause, Some(GapCause::Link));
        }
        life.connected(at(5));
        let loss = life.restored().expect("a link was lost");
        assert_eq!((loss.cause, loss.since), (GapCause::Canary, at(2)));
        assert!(life.restored().is_none(), "it is told once");
        assert_eq!(life.ended(End::Stopped, at(6)), None);
    }

    /// A server that refuses some attempts and cuts some connections at once; then it does not answer.
    struct Scripted {
        attempts: VecDeque<Result<(), ErrorKind>>,
        orders: mpsc::UnboundedReceiver<&'static str>,
        log: mpsc::UnboundedSender<(&'static str, Instant)>,
    }

    impl Scripted {
        fn note(&self, what: &'static str) {
            let noted = self.log.send((what, Instant::now()));
            noted.expect("the test listens");
        }
    }

    impl Session for Scripted {
        type Connection = ();
        type Order = &'static str;

        fn connect(&self) -> BoxFuture<'static, Result<(), LinkError>> {
            let next = self.attempts.front().copied();
            Box::pin(async move {
                match next {
                    Some(answer) => answer.map_err(|kind| LinkError::new(kind, "no")),
                    None => std::future::pending().await,
                }
            })
        }

        fn orders(&mut self) -> &mut mpsc::UnboundedReceiver<&'static str> {
            &mut self.orders
        }

        fn obey(&mut self, order: &'static str) {
            self.note(order);
        }

        async fn serve(&mut self, (): (), life: &mut LinkLife) -> End {
            assert!(life.restored().is_none());
            self.note("served");
            lost(ErrorKind::Io)
        }

        fn lost(&mut self, _: GapCause) {
            self.attempts.pop_front();
            self.note("lost");
        }
    }

    #[tokio::test]
    async fn a_link_is_made_again_after_pauses_and_takes_orders_meanwhile() {
        let (sender, orders) = mpsc::unbounded_channel();
        let (log, mut seen) = mpsc::unbounded_channel();
        let refused = Err(ErrorKind::Io);
        let session = Scripted {
            attempts: [refused, refused, Ok(()), refused].into(),
            orders,
            log,
        };
        let (life, status) = life();
        let kept = tokio::spawn(keep(session, life));
        let mut losses = Vec::new();
        for expected in ["lost", "lost", "served", "lost", "lost"] {
            let (what, when) = seen.recv().await.expect("the session goes on");
            assert_eq!(what, expected);
            losses.extend((what == "lost").then_some(when));
        }
        // 50, 100 and 200 ms, each shortened by up to a half.
        for (pair, least) in losses.windows(2).zip([25, 50, 100]) {
            assert!(
                pair[1] - pair[0] >= Duration::from_millis(least),
                "{losses:?}"
            );
        }
        assert!(!status.ready());

        sender.send("an order").expect("the session goes on");
        assert_eq!(seen.recv().await.map(|(what, _)| what), Some("an order"));
        drop(sender);
        kept.await.expect("it ends once orders can no longer come");
    }
}
