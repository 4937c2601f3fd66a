//! A TCP proxy between the gateway and a server, to cut and to clog.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The proxy's treatment of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// They pass.
    Open,
    /// Connections end, new ones end at once.
    Cut,
    /// Connections stay and are taken, but nothing passes.
    Clogged,
}

/// Listens on loopback and passes on to one server.
pub(crate) struct Proxy {
    address: SocketAddr,
    line: Arc<watch::Sender<Line>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of `target`, `host:port`.
    pub(crate) async fn to(target: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a loopback port");
        let address = listener.local_addr().expect("bound");
        let line = Arc::new(watch::Sender::new(Line::Open));
        let target = target.to_owned();
        let lines = Arc::clone(&line);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target.clone(), lines.subscribe()));
            }
        });
        Self {
            address,
            line,
            task,
        }
    }

    /// `host:port` of the proxy.
    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Sets what happens from now on.
    pub(crate) fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.line.send_replace(Line::Cut);
    }
}

async fn pass(mut client: TcpStream, target: String, mut line: watch::Receiver<Line>) {
    loop {
        let now = *line.borrow_and_update();
        match now {
            Line::Cut => return,
            Line::Clogged => {
                if line.changed().await.is_err() {
                    return;
                }
            }
            Line::Open => break,
        }
    }
    let Ok(mut server) = TcpStream::connect(&target).await else {
        return;
    };
    loop {
        let now = *line.borrow_and_update();
        match now {
            Line::Cut => return,
            Line::Clogged => {
                if line.changed().await.is_err() {
                    return;
                }
            }
            Line::Open => tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
                changed = line.changed() => if changed.is_err() { return },
            },
        }
    }
}
