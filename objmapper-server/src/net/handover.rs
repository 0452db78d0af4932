//! What a reply hands over besides its bytes: descriptors, and something that the store keeps for the peer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::store::{OutgoingWriter, Session, StoreError};

/// The descriptors of one reply, in order.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    owned: Vec<OwnedFd>,
    /// CREATE's, the only descriptor of its reply.
    writer: Option<Arc<OutgoingWriter>>,
}

impl Descriptors {
    pub(crate) fn count(&self) -> usize {
        self.owned.len() + usize::from(self.writer.is_some())
    }

    /// They will not be sent.
    pub(crate) fn close(self) {
        if let Some(writer) = self.writer {
            writer.close();
        }
    }

    /// Has `send` send them and closes them, unless it fails. A COMMIT never meets a writer that is sent already and not
    /// closed yet.
    pub(crate) fn hand_over(&mut self, send: impl FnOnce(&[BorrowedFd<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let sent = match &self.writer {
            Some(writer) => writer.hand_over(|file| send(&[file]))?,
            None => send(&self.owned.iter().map(AsFd::as_fd).collect::<Vec<_>>())?,
        };
        *self = Descriptors::default();
        Ok(sent)
    }
}

/// What the store keeps for the reader of a reply. A reply that cannot be sent gives it back.
#[derive(Debug)]
pub(crate) enum Grant {
    /// ATTACH: a new session.
    Session(Session),
    /// CREATE: a private object, its space and its descriptor.
    Private(Session, u64),
    /// LEASE: the lease.
    Lease(Session, u64),
}

impl Grant {
    pub(crate) fn take_back(self) {
        let taken_back = match self {
            Grant::Session(session) => {
                session.end();
                Ok(())
            }
            Grant::Private(session, handle) => session.abort(handle),
            Grant::Lease(session, lease) => session.unlease(lease, Duration::ZERO),
        };
        match taken_back {
            // It ended by itself, or with its session.
            Ok(()) | Err(StoreError::UnknownHandle | StoreError::UnknownSession) => {}
            Err(e) => log::error!("taking back what an unsent reply grants: {e}"),
        }
    }
}

/// What goes with a reply.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    pub(crate) descriptors: Descriptors,
    pub(crate) grant: Option<Grant>,
}

impl Handover {
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn of(owned: Vec<OwnedFd>) -> Self {
        Handover { descriptors: Descriptors { owned, writer: None }, grant: None }
    }

    /// The writable file of a new private object, which is aborted if the reply cannot be sent.
    pub(crate) fn private(session: Session, handle: u64, writer: Arc<OutgoingWriter>) -> Self {
        let descriptors = Descriptors { owned: Vec::new(), writer: Some(writer) };
        Handover { descriptors, grant: Some(Grant::Private(session, handle)) }
    }

    pub(crate) fn with_grant(self, grant: Option<Grant>) -> Self {
        Handover { grant, ..self }
    }

    pub(crate) fn count(&self) -> usize {
        self.descriptors.count()
    }

    /// The descriptors that a BATCH collects: those of operations that may be in one.
    pub(crate) fn into_owned(self) -> Vec<OwnedFd> {
        self.descriptors.owned
    }

    /// The reply is not sent: takes back what it grants.
    pub(crate) fn take_back(self) {
        self.descriptors.close();
        if let Some(grant) = self.grant {
            grant.take_back();
        }
    }
}
