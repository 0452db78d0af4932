//! What a reply hands over besides its bytes: descriptors, and what the store takes back if the reply cannot be sent
//! (`store::session::delivery` has the rest of a grant's life).
//!
//! A reply that cannot be sent closes its descriptors first, then takes back what it grants: an object that is aborted is
//! charged until its last writer is gone. A pin is not taken back here: it stays until RELEASE, LOST or the session's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::store::{Grant, OutgoingWriter, Session};

/// The descriptors of one reply, in order.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    owned: Vec<OwnedFd>,
    /// The writable descriptor of CREATE, the only one of its reply.
    writer: Option<Arc<OutgoingWriter>>,
}

impl Descriptors {
    pub(crate) fn count(&self) -> usize {
        self.owned.len() + usize::from(self.writer.is_some())
    }

    /// Closes descriptors that will not be sent.
    pub(crate) fn close(self) {
        if let Some(writer) = self.writer {
            writer.close();
        }
    }

    /// Calls `send` with the descriptors, and closes them unless it fails. A COMMIT never finds a writer that is sent and not
    /// yet closed.
    pub(crate) fn hand_over(&mut self, send: impl FnOnce(&[BorrowedFd<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let sent = match &self.writer {
            Some(writer) => writer.hand_over(|file| send(&[file]))?,
            None => send(&self.owned.iter().map(AsFd::as_fd).collect::<Vec<_>>())?,
        };
        *self = Descriptors::default();
        Ok(sent)
    }
}

/// What is taken back if a reply cannot be sent: the new session of ATTACH, or what the reply grants in its session.
#[derive(Debug)]
pub(crate) struct Revocable {
    session: Session,
    /// `None`: the session itself.
    grant: Option<Grant>,
}

impl Revocable {
    /// Returns what is taken back of a new session.
    pub(crate) fn session(session: Session) -> Self {
        Revocable { session, grant: None }
    }

    /// Returns what is taken back of these grants of one reply: a lease or a private object, of which a reply has one at most.
    pub(crate) fn of_grants(session: &Session, grants: &[Grant]) -> Option<Self> {
        let grant = grants.iter().copied().find(|grant| !matches!(grant, Grant::Pin(_)))?;
        Some(Revocable { session: session.clone(), grant: Some(grant) })
    }

    pub(crate) fn take_back(self) {
        match self.grant {
            None => self.session.end(),
            Some(grant) => self.session.withdraw(grant),
        }
    }
}

/// The descriptors of a reply, and what is taken back if it cannot be sent.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    pub(crate) descriptors: Descriptors,
    pub(crate) revocable: Option<Revocable>,
}

impl Handover {
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn of(owned: Vec<OwnedFd>) -> Self {
        Handover { descriptors: Descriptors { owned, writer: None }, revocable: None }
    }

    /// Returns the handover of a new private object: its writable file.
    pub(crate) fn of_writer(writer: Arc<OutgoingWriter>) -> Self {
        Handover { descriptors: Descriptors { owned: Vec::new(), writer: Some(writer) }, revocable: None }
    }

    pub(crate) fn with_revocable(self, revocable: Option<Revocable>) -> Self {
        Handover { revocable, ..self }
    }

    pub(crate) fn count(&self) -> usize {
        self.descriptors.count()
    }

    /// Returns the descriptors for the reply of a BATCH, whose operations have neither a writer nor anything to revoke.
    pub(crate) fn into_owned(self) -> Vec<OwnedFd> {
        self.descriptors.owned
    }

    /// Closes the descriptors and takes back what the reply grants, because it is not sent.
    pub(crate) fn take_back(self) {
        self.descriptors.close();
        if let Some(revocable) = self.revocable {
            revocable.take_back();
        }
    }
}
