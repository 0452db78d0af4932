//! One connection: its input bytes, its protocol, its replies.
//!
//! | state | what ends it |
//! |---|---|
//! | the protocol is unknown | the first byte: `O` is HELLO, anything else is V1 |
//! | V1, V2, V2 with extensions | the peer's end of the stream, an error of the protocol, CLOSE |
//! | refused | the reply to the first request, or the deadline (see `refusal`) |
//! | closing | the last reply is sent |
//!
//! One event loop owns the connection, so that it needs no lock. A request is carried out when all of it has come; only a LEASE
//! waits, and its outcome comes through the loop's inbox. Input is not read while the peer leaves too many replies unread.

mod extended;

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mio::net::UnixStream;
use objmapper_log::RateLimited;
use objmapper_proto::ext::{Op, Reply, ReplyFrame};
use objmapper_proto::limits::MAX_PIPELINE;
use objmapper_proto::v2::{self, ClientFrame, Dialect, Hello, HelloAck, ServerFrame};
use objmapper_proto::{Caps, DecodeError, Status, v1 as wire_v1};

use super::handover::Handover;
use super::inbox::Inbox;
use super::output::Output;
use super::refusal::Refusal;
use super::{Shared, ext, v1};
use crate::store::{Delivery, Session};

/// The connection is not read from while its peer has left this many bytes of replies unread.
const HIGH_WATER: usize = 256 << 10;
/// The same bound for descriptors, which count against this process's limit until the peer reads them.
const MAX_UNREAD_FDS: usize = 32;
/// Bytes of one read.
const MAX_READ: usize = 8 << 10;
/// Bytes read from one connection before the loop serves its other connections.
const MAX_TURN_BYTES: usize = 64 << 10;

static SEND_FAILURES: RateLimited = RateLimited::new(5, Duration::from_secs(60));

enum Protocol {
    /// The first byte decides.
    Unknown,
    V1,
    Hello,
    V2 {
        dialect: Dialect,
        pipeline: u16,
    },
}

/// A LEASE that waits for its outcome.
struct Wait {
    ticket: u64,
    /// The session that asked: a later ATTACH may have changed the connection's.
    session: Session,
    /// The delivery of that session, for the same reason.
    delivery: Option<Arc<Delivery>>,
    fd: bool,
    pin: bool,
}

/// What the loop does with the connection next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Waits until the socket is ready.
    Wait,
    /// Continues without waiting, after the other ready connections.
    Again,
    /// Closes the connection.
    Close,
}

pub(super) struct Connection {
    stream: UnixStream,
    /// The connection's number in its loop; never used again.
    number: usize,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    protocol: Protocol,
    input: Vec<u8>,
    /// Bytes of the input that have been carried out.
    consumed: usize,
    output: Output,
    session: Option<Session>,
    /// What the replies on this connection gave, if the client has asked for its number.
    delivery: Option<Arc<Delivery>>,
    /// True once a request was carried out in the session.
    used: bool,
    /// Why the connection is not served; its first request is answered with that.
    refusal: Option<Refusal>,
    waits: HashMap<u32, Wait>,
    /// True while the socket may have bytes that were not read.
    readable: bool,
    /// True once the peer has ended its direction of the stream.
    ended: bool,
    /// True once no further request is carried out: the connection closes when its replies are sent.
    closing: bool,
}

impl Connection {
    /// Makes a connection that is served or, with `refusal`, one whose first request is answered with the refusal.
    pub(super) fn new(
        stream: UnixStream,
        number: usize,
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        refusal: Option<Refusal>,
    ) -> Self {
        Connection {
            stream,
            number,
            shared,
            inbox,
            protocol: Protocol::Unknown,
            input: Vec::new(),
            consumed: 0,
            output: Output::default(),
            session: None,
            delivery: None,
            used: false,
            refusal,
            waits: HashMap::new(),
            readable: true,
            ended: false,
            closing: false,
        }
    }

    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Notes that the socket is readable, or at the end of its stream.
    pub(super) fn note_readable(&mut self) {
        self.readable = true;
    }

    /// Carries out what needs no waiting, and returns what the loop does next.
    pub(super) fn turn(&mut self) -> Next {
        match self.try_turn() {
            Ok(next) => next,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.shared.protocol_errors.fetch_add(1, Relaxed);
                    if let Some(left_out) = self.shared.protocol_log.admit() {
                        log::info!("a connection is ended: {error}{left_out}");
                    }
                } else if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                    log::debug!("a connection is ended: {error}");
                } else {
                    self.shared.send_failures.fetch_add(1, Relaxed);
                    if let Some(left_out) = SEND_FAILURES.admit() {
                        log::warn!("a connection is ended: {}{left_out}", explained(&error));
                    }
                }
                Next::Close
            }
        }
    }

    fn try_turn(&mut self) -> io::Result<Next> {
        self.output.flush(self.stream.as_fd())?;
        let mut budget = MAX_TURN_BYTES;
        loop {
            while !self.closing && self.has_room() && self.step()? {}
            self.output.flush(self.stream.as_fd())?;
            if self.closing || !self.has_room() || !self.readable || self.ended {
                break;
            }
            if budget == 0 {
                return Ok(Next::Again);
            }
            budget -= self.read(budget.min(MAX_READ))?;
        }
        let drained = self.shared.draining.load(Relaxed)
            && self.waits.is_empty()
            && self.session.as_ref().is_none_or(|s| s.private_objects() == 0);
        let over = self.closing || drained || (self.ended && self.has_room());
        Ok(if over && self.output.is_empty() { Next::Close } else { Next::Wait })
    }

    fn has_room(&self) -> bool {
        self.output.bytes() < HIGH_WATER && self.output.fds() < MAX_UNREAD_FDS
    }

    /// Reads once and returns the number of bytes.
    fn read(&mut self, budget: usize) -> io::Result<usize> {
        if self.consumed > 0 {
            self.input.drain(..self.consumed);
            self.consumed = 0;
        }
        let start = self.input.len();
        self.input.resize(start + budget, 0);
        let got = (&self.stream).read(&mut self.input[start..]);
        self.input.truncate(start + got.as_ref().map_or(0, |n| *n));
        match got {
            Ok(0) => {
                self.ended = true;
                Ok(0)
            }
            Ok(n) => Ok(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Carries out one message of the input. Returns false if the input has no complete one.
    fn step(&mut self) -> io::Result<bool> {
        // Taken out for the step, so that what is decoded may borrow from it.
        let input = std::mem::take(&mut self.input);
        let stepped = self.step_on(&input[self.consumed..]);
        self.input = input;
        let Some(used) = stepped? else { return Ok(false) };
        self.consumed += used;
        if self.consumed == self.input.len() {
            self.consumed = 0;
            self.input.clear();
            self.input.shrink_to(MAX_TURN_BYTES);
        }
        Ok(true)
    }

    /// Carries out the first message of `input` and returns its length.
    fn step_on(&mut self, input: &[u8]) -> io::Result<Option<usize>> {
        let used = match self.protocol {
            Protocol::Unknown => {
                let Some(first) = input.first() else { return Ok(None) };
                self.protocol = if *first == b'O' { Protocol::Hello } else { Protocol::V1 };
                Some(0)
            }
            Protocol::V1 => whole(wire_v1::Request::decode(input))?.map(|(request, used)| {
                self.serve_v1(&request);
                used
            }),
            Protocol::Hello => whole(Hello::decode(input))?.map(|(hello, used)| {
                self.greet(hello);
                used
            }),
            Protocol::V2 { dialect, pipeline } => whole(ClientFrame::decode(input, dialect))?.map(|(frame, used)| {
                self.serve_v2(&frame, pipeline);
                used
            }),
        };
        Ok(used)
    }

    fn serve_v1(&mut self, request: &wire_v1::Request<'_>) {
        let mut answer = self.answer_v1(request.mode, request.uri, false);
        let fds = Handover::of(answer.fd.take().into_iter().collect());
        self.output.push(fds, |out| answer.with_response(|r| encoded(r.encode(out))));
    }

    /// Answers a V1 or V2 request.
    fn answer_v1(&mut self, mode: u8, uri: &[u8], ephemeral: bool) -> v1::Answer {
        match &self.refusal {
            None => v1::answer(&self.shared.store, mode, uri, ephemeral),
            Some(refusal) => {
                self.closing = true;
                v1::Answer::failure(Status::Unavailable, refusal.to_string())
            }
        }
    }

    fn greet(&mut self, hello: Hello) {
        let ack = if hello.caps.contains(Caps::EXTENSIONS) {
            let pipeline = hello.pipeline.clamp(1, MAX_PIPELINE);
            self.protocol = Protocol::V2 { dialect: Dialect::Extended, pipeline };
            self.output.join_descriptors();
            HelloAck { caps: Caps::EXTENSIONS, pipeline, parallelism: self.shared.loops }
        } else {
            self.protocol = Protocol::V2 { dialect: Dialect::V2, pipeline: 1 };
            // As v0.1 answers, byte for byte.
            HelloAck { caps: Caps::NONE, pipeline: hello.pipeline.min(1), parallelism: 2 }
        };
        self.output.push(Handover::none(), |out| ack.encode(out));
    }

    fn serve_v2(&mut self, frame: &ClientFrame<'_>, pipeline: u16) {
        match frame {
            ClientFrame::Request(request) => {
                let ephemeral = request.flags & v2::FLAG_EPHEMERAL != 0;
                let mut answer = self.answer_v1(request.mode, request.uri, ephemeral);
                let fds = Handover::of(answer.fd.take().into_iter().collect());
                let id = request.id;
                self.output.push(fds, |out| {
                    answer.with_response(|body| {
                        encoded(ServerFrame::Response(v2::Response { id, body }).encode(out));
                    });
                });
            }
            ClientFrame::Close { .. } => {
                let outstanding = u32::try_from(self.waits.len()).unwrap_or(u32::MAX);
                self.output.push(Handover::none(), |out| encoded(ServerFrame::CloseAck { outstanding }.encode(out)));
                self.closing = true;
            }
            ClientFrame::Ext(frame) => self.serve_ext(frame, pipeline),
        }
    }

    fn reply(&mut self, id: u32, op: Op, reply: &Reply<'_>, handover: Handover) {
        let nfds = u8::try_from(handover.count()).unwrap_or(0);
        let mut frame = Vec::new();
        match reply.encode(id, op, nfds, &mut frame) {
            Ok(()) => self.output.push(handover, |out| out.extend_from_slice(&frame)),
            Err(e) => {
                handover.take_back();
                self.fail(id, op.code(), (Status::Internal, e.to_string()));
            }
        }
    }

    fn fail(&mut self, id: u32, op: u8, (status, message): ext::Failure) {
        self.output.push(Handover::none(), |out| ReplyFrame::encode_failure(id, op, status, &message, out));
    }

    /// Answers the waiting LEASE requests with the server's shutdown.
    pub(super) fn drain(&mut self) {
        let waiting: Vec<u32> = self.waits.keys().copied().collect();
        for id in waiting {
            let cancelled = self.waits.get(&id).is_some_and(|w| w.session.cancel_wait(w.ticket));
            if cancelled {
                self.waits.remove(&id);
                let failure = (Status::Unavailable, "the server is shutting down".into());
                self.fail(id, Op::Lease.code(), failure);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Waiting requests are cancelled, so that no lease is granted to a closed connection. The event loop gives a lease back
        // that was granted before the cancellation.
        for wait in self.waits.values() {
            wait.session.cancel_wait(wait.ticket);
        }
        self.waits.clear();
        self.leave_session();
        let counter = if self.refusal.is_some() { &self.shared.refusing } else { &self.shared.connections };
        counter.fetch_sub(1, Relaxed);
    }
}

/// Returns the text of a socket's error, with the remedy if there is one.
fn explained(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ETOOMANYREFS) => format!(
            "sending a descriptor: {error}: more descriptors of this user are sent and unread than the limit on open files \
             allows one process; remedy: run objmapperd as a user of its own, or raise the limit (ulimit -n, LimitNOFILE=)"
        ),
        _ => error.to_string(),
    }
}

/// Returns the decoded value, `None` if bytes are missing, or an error if the bytes are malformed.
fn whole<T>(decoded: Result<T, DecodeError>) -> io::Result<Option<T>> {
    match decoded {
        Ok(value) => Ok(Some(value)),
        Err(DecodeError::Incomplete { .. }) => Ok(None),
        Err(DecodeError::Malformed(what)) => Err(io::Error::new(io::ErrorKind::InvalidData, what.to_string())),
    }
}

/// Logs a response that could not be encoded. Responses are built within the limits; for one beyond them the peer gets no
/// answer before its deadline.
fn encoded(result: Result<(), objmapper_proto::EncodeError>) {
    if let Err(e) = result {
        log::error!("a response could not be encoded: {e}");
    }
}
