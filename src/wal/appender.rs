//! Hands records to the writer and waits until they are durable.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::AppendError;
use super::inbox::{self, QueueLimits, Rejected};
use crate::record::{Lsn, Record};

/// Records waiting for the writer: a few groups, so that one fills while another is committed. The
/// bytes bound the memory of a burst of large records.
const INBOX: QueueLimits = QueueLimits { items: 16 * 1024, bytes: 32 * 1024 * 1024 };

/// A record on its way to the writer. The writer owns it: a sender that goes away changes nothing.
pub(super) struct Append {
    pub(super) record: Record,
    /// The record's encoded length.
    pub(super) bytes: usize,
    reply: Reply,
    /// Which of [`ReplyRoutes`] brings the answer.
    route: usize,
}

type Outcome = Result<Lsn, AppendError>;
type Reply = oneshot::Sender<Outcome>;
/// The answers of one commit to the senders of one route.
type Replies = Vec<(Reply, Outcome)>;

/// The writer's end of the inbox.
pub(super) type Inbox = inbox::Receiver<Append>;

/// The way back to the senders, of which each runtime has its own.
///
/// To wake a task of another thread's runtime takes a system call. So a commit wakes one task per
/// route, which then wakes those that wait on its own thread.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplyRoutes(Arc<Mutex<Vec<mpsc::UnboundedSender<Replies>>>>);

impl ReplyRoutes {
    fn lock(&self) -> MutexGuard<'_, Vec<mpsc::UnboundedSender<Replies>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the whole group.
    pub(super) fn answer(&self, group: &mut Vec<Append>, mut outcome: impl FnMut() -> Outcome) {
        let size = group.len();
        let mut by_route: Vec<(usize, Replies)> = Vec::new();
        for Append { record, reply, route, .. } in group.drain(..) {
            // Before the answer: the connection can then use its buffer again.
            drop(record);
            let answer = (reply, outcome());
            let found = by_route.iter_mut().find(|(known, _)| *known == route);
            if let Some((_, replies)) = found {
                replies.push(answer);
            } else {
                let mut replies = Vec::with_capacity(size);
                replies.push(answer);
                by_route.push((route, replies));
            }
        }
        let routes = self.lock();
        for (route, replies) in by_route {
            // The runtime may have ended.
            let _ = routes[route].send(replies);
        }
    }

    /// Nothing more will be answered.
    pub(super) fn close(&self) {
        self.lock().clear();
    }
}

/// What handles to append with are made from. The log closes when it and all of them are dropped.
#[derive(Clone, Debug)]
pub struct Appender {
    inbox: inbox::Sender<Append>,
    routes: ReplyRoutes,
}

impl Appender {
    pub(super) fn new() -> (Self, Inbox, ReplyRoutes) {
        let (inbox, receiver) = inbox::channel(INBOX);
        let routes = ReplyRoutes::default();
        (Self { inbox, routes: routes.clone() }, receiver, routes)
    }

    /// A handle for the tasks of the current runtime: one route for all of them.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn handle(&self) -> AppendHandle {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Replies>();
        let mut routes = self.routes.lock();
        let route = routes.len();
        routes.push(sender);
        drop(routes);
        tokio::spawn(async move {
            while let Some(replies) = receiver.recv().await {
                for (reply, outcome) in replies {
                    // The sender may have stopped waiting.
                    let _ = reply.send(outcome);
                }
            }
        });
        AppendHandle { inbox: self.inbox.clone(), route }
    }
}

/// A handle to append with, for the tasks of one runtime.
#[derive(Clone, Debug)]
pub struct AppendHandle {
    inbox: inbox::Sender<Append>,
    route: usize,
}

impl AppendHandle {
    /// Appends `record`; when this returns `Ok`, it is durable (I1).
    ///
    /// # Errors
    /// [`AppendError`]
    pub async fn append(&self, record: Record) -> Result<Lsn, AppendError> {
        let bytes = record.encoded_len();
        let (reply, outcome) = oneshot::channel();
        let append = Append { record, bytes, reply, route: self.route };
        self.inbox.send(append, bytes).map_err(|rejected| match rejected {
            Rejected::Full => AppendError::Busy,
            Rejected::Closed => AppendError::Failed,
        })?;
        outcome.await.unwrap_or(Err(AppendError::Failed))
    }
}
