//! Makes a connection: connect, HELLO with its fallbacks, ATTACH.
//!
//! The client tries HELLO with the extensions, then without, then V1. A peer counts as one without extensions only if it answers in the
//! older protocol; a peer that closes connections unanswered is an error. Once the extensions were seen, V1 is not tried again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use objmapper_log::RateLimited;
use objmapper_proto::ext::{self, Op, Reply, Request, Token};
use objmapper_proto::v2::{Dialect, Hello, HelloAck, ServerFrame};
use objmapper_proto::{Caps, DecodeError, Mode, Status, v1};

use crate::board::Board;
use crate::config::{Config, Protocol};
use crate::connection::{Connection, Owner};
use crate::counters::Counters;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::session::Session;

use crate::socket::{Inbox, Ready, Socket};
use crate::state::Version;

/// The outcome of ATTACH.
pub(crate) struct Attachment {
    pub(crate) session: Arc<Session>,
    /// The connection's number, if the store has given it one.
    number: Option<u64>,
    /// True if the store does not know the former session's token.
    pub(crate) lost_previous: bool,
}

/// The outcome of HELLO on a connection without requests.
struct Negotiated {
    socket: Socket,
    inbox: Inbox,
    version: Version,
    depth: usize,
}

/// How often a peer may close the connection on a HELLO before the client takes it for one that does not know that HELLO. A
/// v0.1 server resets connections now and then, whatever HELLO it gets.
const MAX_HANGUPS: usize = 3;

/// The minimum protocol that a peer must speak to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MinProtocol {
    /// Open connections to the peer have the extensions, so this one must have them.
    Extended,
    /// The peer had the extensions before. It may be another program now, if its HELLO_ACK says so. V1 has
    /// no HELLO_ACK, and a failing peer that closes every connection looks the same.
    V2,
    /// Nothing is known of the peer.
    V1,
}

/// Connects and negotiates.
fn negotiate(config: &Config, min_protocol: MinProtocol, counters: &Counters, deadline: Instant) -> Result<Negotiated> {
    let plain = Caps::OUT_OF_ORDER.union(Caps::PIPELINING);
    let extended = plain.union(Caps::EXTENSIONS);
    let extended_only = min_protocol == MinProtocol::Extended;
    let hellos: &[Caps] = match config.protocol {
        Protocol::Auto if extended_only => &[extended],
        Protocol::Auto => &[extended, plain],
        Protocol::V2 => &[plain],
        Protocol::V1 => &[],
    };
    for &caps in hellos {
        for _ in 0..MAX_HANGUPS {
            match hello(Socket::open(&config.target, deadline)?, caps, config.pipeline, deadline) {
                Ok(negotiated) if extended_only && negotiated.version != Version::Extended => {
                    return Err(Error::Unsupported(OpName::Ext(Op::Attach)));
                }
                Ok(negotiated) => {
                    if negotiated.version != Version::Extended {
                        Counters::add(&counters.fallbacks, 1);
                    }
                    return Ok(negotiated);
                }
                Err(why @ (Error::Closed | Error::Protocol(_))) => {
                    log::debug!("HELLO with capabilities {:#06x}: {why}", caps.bits());
                }
                // A peer that does not answer is stalled, which is no sign of an older protocol.
                Err(why) => return Err(why),
            }
        }
    }
    if min_protocol != MinProtocol::V1 || config.protocol == Protocol::V2 {
        return Err(Error::HungUp);
    }
    let negotiated = v1_exchange(Socket::open(&config.target, deadline)?, deadline).map_err(|why| match why {
        Error::Closed => Error::HungUp,
        why => why,
    })?;
    Counters::add(&counters.fallbacks, 1);
    Ok(negotiated)
}

/// The V1 request that tests a peer: a delete of an object that does not exist.
const V1_PROBE: &[u8] = b"/delete/objmapper-client-probe";

/// Makes one exchange in V1. An old peer closes the connection on HELLO, and so does one that fails. The request brings no descriptor and changes nothing.
fn v1_exchange(socket: Socket, deadline: Instant) -> Result<Negotiated> {
    let mut bytes = Vec::new();
    v1::Request { mode: Mode::Fd.byte(), uri: V1_PROBE }.encode(&mut bytes)?;
    send_all(&socket, &bytes, deadline)?;
    let mut inbox = Inbox::default();
    loop {
        let needed = match v1::Response::decode(inbox.bytes()) {
            Ok((response, _)) if response.status == Status::Unavailable => {
                let text = String::from_utf8_lossy(response.metadata.error_text().unwrap_or_default()).into_owned();
                return Err(Error::Status { op: OpName::Delete, status: response.status, message: text.into() });
            }
            Ok((_, used)) => {
                Connection::first_reply_fds(&mut inbox, used, 0)?;
                return Ok(Negotiated { socket, inbox, version: Version::V1, depth: 1 });
            }
            Err(DecodeError::Incomplete { needed }) => needed,
            Err(DecodeError::Malformed(m)) => return Err(m.into()),
        };
        if inbox.fill(&socket, needed, Some(deadline))? == Ready::TimedOut {
            return Err(Error::Timeout { what: "an answer in protocol V1" });
        }
    }
}

fn send_all(socket: &Socket, mut bytes: &[u8], deadline: Instant) -> Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[socket.send(bytes)?..];
        if !bytes.is_empty() && socket.wait_writable(false, deadline)? == Ready::TimedOut {
            return Err(Error::Timeout { what: "the store to take HELLO" });
        }
    }
    Ok(())
}

fn hello(socket: Socket, caps: Caps, pipeline: u16, deadline: Instant) -> Result<Negotiated> {
    let mut bytes = Vec::new();
    Hello { caps, pipeline }.encode(&mut bytes);
    send_all(&socket, &bytes, deadline)?;
    let mut inbox = Inbox::default();
    let ack = loop {
        match HelloAck::decode(inbox.bytes()) {
            Ok((ack, used)) => {
                Connection::first_reply_fds(&mut inbox, used, 0)?;
                break ack;
            }
            Err(DecodeError::Incomplete { needed }) => {
                if inbox.fill(&socket, needed, Some(deadline))? == Ready::TimedOut {
                    return Err(Error::Timeout { what: "an answer to HELLO" });
                }
            }
            Err(DecodeError::Malformed(m)) => return Err(m.into()),
        }
    };
    // Only requested capabilities count as granted, whatever the peer answers.
    let granted = Caps::from_bits(ack.caps.bits() & caps.bits());
    let extended = granted.contains(Caps::EXTENSIONS);
    let version = if extended { Version::Extended } else { Version::V2 };
    let depth =
        if extended || granted.contains(Caps::PIPELINING) { usize::from(ack.pipeline.min(pipeline).max(1)) } else { 1 };
    Ok(Negotiated { socket, inbox, version, depth })
}

/// Sends ATTACH. Returns the parsed reply with its descriptors, or the status of the refusal.
fn attach_once(
    negotiated: &mut Negotiated,
    token: Token,
    (board, number): (bool, bool),
    deadline: Instant,
) -> Result<Result<(ext::Attached, crate::socket::Fds), (Status, String)>> {
    let mut bytes = Vec::new();
    Request::Attach { session: token, directories: true, board, number }.encode(0, &mut bytes)?;
    send_all(&negotiated.socket, &bytes, deadline)?;
    loop {
        let needed = match ServerFrame::decode(negotiated.inbox.bytes(), Dialect::Extended) {
            Ok((ServerFrame::Ext(frame), used)) if frame.id == 0 && frame.op == Op::Attach.code() => {
                let nfds = usize::from(frame.nfds);
                if nfds == 0 || negotiated.inbox.bytes().len() > used {
                    let parsed = match frame.status {
                        Status::Ok => match Reply::parse(Op::Attach, frame.payload)? {
                            Reply::Attached(attached) => Ok(attached),
                            _ => return Err(ProtocolError::WrongKind.into()),
                        },
                        status => Err((status, frame.message())),
                    };
                    let fds = Connection::first_reply_fds(&mut negotiated.inbox, used, nfds)?;
                    return Ok(parsed.map(|attached| (attached, fds)));
                }
                1
            }
            Ok(_) => return Err(ProtocolError::WrongKind.into()),
            Err(DecodeError::Incomplete { needed }) => needed,
            Err(DecodeError::Malformed(m)) => return Err(m.into()),
        };
        if negotiated.inbox.fill(&negotiated.socket, needed, Some(deadline))? == Ready::TimedOut {
            return Err(Error::Timeout { what: "an answer to ATTACH" });
        }
    }
}

fn map_board(fd: &OwnedFd, counters: &Counters) -> Option<Board> {
    Board::map(fd)
        .inspect_err(|why| {
            static REFUSED: RateLimited = RateLimited::new(3, Duration::from_secs(60));
            Counters::add(&counters.boards_refused, 1);
            if let Some(left_out) = REFUSED.admit() {
                log::warn!("the store's board is not used: {why}{left_out}");
            }
        })
        .ok()
}

/// Resumes the session `previous`, or begins a new one.
fn attach(
    negotiated: &mut Negotiated,
    previous: Option<&Arc<Session>>,
    next_id: u64,
    owner: &Weak<dyn Owner>,
    counters: &Counters,
    deadline: Instant,
) -> Result<Attachment> {
    let mut lost_previous = false;
    let mut offered = previous;
    // Older stores do not know the flag for the number, and still older ones that for the board.
    let (mut with_board, mut with_number) = (true, true);
    loop {
        let token = offered.map_or(Token::NEW, |s| s.token);
        match attach_once(negotiated, token, (with_board, with_number), deadline)? {
            Ok((attached, mut fds)) => {
                if attached.version != ext::VERSION {
                    return Err(ProtocolError::ExtensionsVersion(attached.version).into());
                }
                // A store without a board sends no descriptor for it.
                let board = if with_board && fds.len() == attached.tiers.len() + 1 { fds.pop() } else { None };
                if fds.len() != attached.tiers.len() {
                    return Err(ProtocolError::FdCount { expected: attached.tiers.len(), got: fds.len() }.into());
                }
                let board = board.and_then(|fd| map_board(&fd, counters));
                let number = attached.connection;
                if let Some(session) = offered {
                    if session.token != attached.session {
                        return Err(ProtocolError::WrongKind.into());
                    }
                    // A restarted server has another board, and may have the same instance.
                    if session.instance == attached.instance
                        && session.board().map(Board::id) == board.as_ref().map(Board::id)
                    {
                        return Ok(Attachment { session: Arc::clone(session), number, lost_previous: false });
                    }
                }
                let tiers =
                    attached.tiers.iter().zip(fds).map(|(t, fd)| Session::tier(t.tier, t.limit, t.used, fd)).collect();
                let id = offered.map_or(next_id, |s| s.id);
                let session = Session { id, instance: attached.instance, token: attached.session, tiers, board };
                return Ok(Attachment { session: Arc::new(session), number, lost_previous });
            }
            Err((Status::InvalidRequest, _)) if with_number => with_number = false,
            Err((Status::InvalidRequest, _)) if with_board => with_board = false,
            // DETACH may be the reason.
            Err((Status::UnknownSession, _)) if owner.upgrade().is_none_or(|o| o.is_ending()) => {
                return Err(Error::ShutDown);
            }
            Err((Status::UnknownSession, _)) if offered.is_some() => {
                lost_previous = true;
                offered = None;
            }
            Err((status, message)) => {
                return Err(Error::Status { op: OpName::Ext(Op::Attach), status, message: message.into() });
            }
        }
    }
}

/// Makes a connection and attaches it. `previous` is the session to resume.
pub(crate) fn establish(
    config: &Config,
    previous: Option<&Arc<Session>>,
    next_session_id: u64,
    counters: &Arc<Counters>,
    owner: Weak<dyn Owner>,
    min_protocol: MinProtocol,
) -> Result<(Connection, Option<Attachment>)> {
    let deadline = Instant::now() + config.connect_timeout;
    let mut negotiated = negotiate(config, min_protocol, counters, deadline)?;
    let attachment = match negotiated.version {
        Version::Extended => Some(attach(&mut negotiated, previous, next_session_id, &owner, counters, deadline)?),
        Version::V2 | Version::V1 => None,
    };
    let Negotiated { socket, inbox, version, depth } = negotiated;
    log::debug!("connected, {version:?}, pipeline {depth}, descriptor {:?}", socket.as_fd());
    let session = attachment.as_ref().map(|a| Arc::clone(&a.session));
    let number = attachment.as_ref().and_then(|a| a.number);
    Ok((Connection::new(socket, inbox, version, (session, number), depth, Arc::clone(counters), owner), attachment))
}
