//! No input panics a decoder, what was encoded decodes to the same, and decoders agree with themselves
//! however the bytes arrive.

use objmapper_proto::ext::{
    Attached, BatchReply, Commit, Entry, EntryFlags, Fence, IfVersion, LeaseOutcome, ListPage, Op, Reply, Request,
    Stat, Tier, TierLimits, TierStat, Token, Want, board,
};
use objmapper_proto::v2::{ClientFrame, Dialect, Hello, HelloAck, ServerFrame};
use objmapper_proto::{Caps, DecodeError, Metadata, ObjUri, Segment, SegmentFlags, SegmentKind, Status, Tlv, v1, v2};
use proptest::collection::vec;
use proptest::prelude::*;

fn uri() -> impl Strategy<Value = ObjUri<'static>> {
    vec("[a-z0-9._~-]{1,12}", 1..5)
        .prop_map(|parts| format!("/{}", parts.join("/")))
        .prop_filter_map("dot segments", |text| ObjUri::try_from(text).ok())
}

fn want() -> impl Strategy<Value = Want> {
    (any::<bool>(), any::<bool>()).prop_map(|(fd, pin)| Want { fd, pin })
}

fn tier() -> impl Strategy<Value = Tier> {
    (1..=u8::MAX).prop_map(|code| Tier::try_from(code).unwrap())
}

fn fence() -> impl Strategy<Value = Fence> {
    (0..board::SHARDS, any::<u64>()).prop_map(|(shard, value)| Fence { shard, value })
}

fn commit() -> impl Strategy<Value = Request<'static>> {
    (any::<(u64, u64, i64, u64, bool)>(), uri(), want(), proptest::option::of(fence())).prop_map(
        |((handle, length, expires, if_version, ephemeral), uri, want, fence)| {
            let if_version = IfVersion::from_raw(if_version);
            Request::Commit(Commit { handle, length, expires, if_version, uri, want, ephemeral, fence })
        },
    )
}

fn batchable() -> impl Strategy<Value = Request<'static>> {
    prop_oneof![
        (uri(), want()).prop_map(|(uri, want)| Request::Lookup { uri, want }),
        commit(),
        any::<u64>().prop_map(|handle| Request::Abort { handle }),
        (any::<u64>(), uri(), any::<bool>()).prop_map(|(raw, uri, evict)| Request::Delete {
            if_version: IfVersion::from_raw(raw),
            uri,
            evict
        }),
        vec(any::<u64>(), 0..20).prop_map(|objects| Request::Release { objects }),
    ]
}

fn request() -> impl Strategy<Value = Request<'static>> {
    prop_oneof![
        batchable(),
        any::<([u8; 16], bool, bool, bool)>().prop_map(|(t, directories, board, number)| Request::Attach {
            session: Token(t),
            directories,
            board,
            number
        }),
        (proptest::option::of(tier()), any::<u64>(), proptest::option::of(uri()))
            .prop_map(|(tier, length, uri)| Request::Create { tier, length, uri }),
        any::<(u64, u64)>().prop_map(|(handle, length)| Request::Reserve { handle, length }),
        any::<u16>().prop_map(|max| Request::List { prefix: b"/x/", cursor: b"\0\xff", max }),
        (any::<(u32, u32)>(), uri(), want()).prop_map(|((wait, hold), uri, want)| Request::Lease {
            wait,
            hold,
            uri,
            want
        }),
        any::<(u64, u32)>().prop_map(|(lease, refuse)| Request::Unlease { lease, refuse }),
        vec(batchable(), 0..20).prop_map(Request::Batch),
        Just(Request::Stat),
        Just(Request::Detach),
        any::<(u64, u64)>().prop_map(|(connection, read)| Request::Lost { connection, read }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (any::<(u64, u64, u64, i64, i64)>(), tier(), 0..8_u8).prop_map(
        |((object, version, length, mtime, expires), tier, flags)| Entry {
            object,
            version,
            tier,
            flags: EntryFlags::from_bits(flags).unwrap(),
            length,
            mtime,
            expires,
        },
    )
}

fn reply() -> impl Strategy<Value = (Op, Reply<'static>)> {
    let batch_reply = prop_oneof![
        (entry(), 0..2_u8).prop_map(|(e, nfds)| BatchReply::Done { op: Op::Lookup, nfds, reply: Reply::Entry(e) }),
        Just(BatchReply::Done { op: Op::Delete, nfds: 0, reply: Reply::Empty }),
        "[a-zé ]{0,40}".prop_map(|message| BatchReply::Failed { op: Op::Commit, status: Status::Busy, message }),
    ];
    prop_oneof![
        entry().prop_map(|e| (Op::Lookup, Reply::Entry(e))),
        (any::<u64>(), tier()).prop_map(|(handle, tier)| (Op::Create, Reply::Created { handle, tier })),
        Just((Op::Release, Reply::Empty)),
        (any::<([u8; 16], [u8; 16], u8, Option<u64>)>(), vec((tier(), any::<(u64, u64)>()), 0..3)).prop_map(
            |((instance, session, version, connection), tiers)| {
                let tiers = tiers.into_iter().map(|(tier, (limit, used))| TierLimits { tier, limit, used }).collect();
                let (instance, session) = (Token(instance), Token(session));
                (Op::Attach, Reply::Attached(Attached { instance, session, version, tiers, connection }))
            }
        ),
        (tier(), any::<(u64, u64, u64, u64, u64)>(), any::<(u32, u32, u32)>()).prop_map(
            |(tier, (limit, used, pinned, objects, evictions), (sessions, private, leases))| {
                let tiers = vec![TierStat { tier, limit, used, pinned, objects, evictions }];
                (Op::Stat, Reply::Stat(Stat { tiers, sessions, private, leases }))
            }
        ),
        vec((uri(), entry()), 0..10).prop_map(|items| (Op::List, Reply::List(ListPage { items, cursor: b"next" }))),
        entry().prop_map(|e| (Op::Lease, Reply::Lease(LeaseOutcome::Present(e)))),
        any::<u64>().prop_map(|lease| (Op::Lease, Reply::Lease(LeaseOutcome::Granted { lease }))),
        any::<u32>().prop_map(|retry| (Op::Lease, Reply::Lease(LeaseOutcome::Refused { retry }))),
        vec(batch_reply, 0..10).prop_map(|replies| (Op::Batch, Reply::Batch(replies))),
    ]
}

fn segments() -> impl Strategy<Value = (Vec<Segment>, Vec<u8>)> {
    let segment = (0..3_u8, any::<bool>(), 0..100_u32, any::<(u64, u32, u32)>());
    vec(segment, 0..64).prop_map(|specs| {
        let mut segments: Vec<Segment> = Vec::new();
        for (kind, reuse, inline, (logical_len, offset, storage_len)) in specs {
            let kind = SegmentKind::try_from(kind).unwrap();
            let can_reuse = segments.iter().any(Segment::brings_fd);
            segments.push(Segment {
                kind,
                flags: if reuse && can_reuse { SegmentFlags::REUSE_FD } else { SegmentFlags::NONE },
                copy_len: if kind == SegmentKind::Inline { inline } else { 0 },
                logical_len,
                offset: offset.into(),
                storage_len: storage_len.into(),
            });
        }
        let inline = segments.iter().map(|s| s.copy_len as usize).sum();
        (segments, vec![b'i'; inline])
    })
}

/// Each decoder on the same bytes. `Incomplete` never asks for nothing.
fn decode_all(bytes: &[u8]) {
    let check = |r: Result<usize, DecodeError>| match r {
        Ok(used) => assert!(used > 0 && used <= bytes.len()),
        Err(DecodeError::Incomplete { needed }) => assert!(needed > 0),
        Err(DecodeError::Malformed(_)) => {}
    };
    check(v1::Request::decode(bytes).map(|r| r.1));
    check(v1::Response::decode(bytes).map(|r| r.1));
    check(Hello::decode(bytes).map(|r| r.1));
    check(HelloAck::decode(bytes).map(|r| r.1));
    for dialect in [Dialect::V2, Dialect::Extended] {
        check(ClientFrame::decode(bytes, dialect).map(|r| r.1));
        check(ServerFrame::decode(bytes, dialect).map(|r| r.1));
    }
    let _ = Metadata::parse(bytes).map(|m| m.iter().count());
    let _ = ObjUri::parse(bytes).map(|u| u.check_v01());
    for op in 0..=16 {
        let _ = Request::parse(op, bytes.first().copied().unwrap_or(0) & 7, bytes);
        if let Ok(op) = Op::try_from(op) {
            let _ = Reply::parse(op, bytes);
        }
    }
}

proptest! {
    #[test]
    fn no_input_panics(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }

    #[test]
    fn no_input_panics_behind_a_plausible_head(
        head in prop::sample::select(vec![&b"\x01"[..], b"\x02", b"\x05\0\0\0\x01\0\0\x02\0\0", b"\x10\0\0\0\x01\x0d\0\0\0\0\x20",
            b"\x11\0\0\0\x01\x0d\0\0\0\0\0\x20", b"OBJM\x02", b"1\0\x10", b"\0\x02\x02\0\0\0\0\x04", b"\x01\0\x08"]),
        tail in vec(0..4_u8, 0..120),
    ) {
        decode_all(&[head, &tail].concat());
    }

    #[test]
    fn a_damaged_frame_never_panics(request in request(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = Vec::new();
        request.encode(1, &mut bytes).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        decode_all(&bytes);
        decode_all(&bytes[11.min(bytes.len())..]);
    }

    #[test]
    fn extension_requests(id in any::<u32>(), request in request(), behind in vec(any::<u8>(), 0..20)) {
        let mut bytes = Vec::new();
        request.encode(id, &mut bytes).unwrap();
        let len = bytes.len();
        bytes.extend(&behind);
        let (ClientFrame::Ext(frame), used) = ClientFrame::decode(&bytes, Dialect::Extended).unwrap() else { panic!() };
        prop_assert_eq!((used, frame.id), (len, id));
        prop_assert_eq!(Request::parse(frame.op, frame.flags, frame.payload).unwrap(), request);
        let mut again = Vec::new();
        ClientFrame::Ext(frame).encode(&mut again).unwrap();
        prop_assert_eq!(&again, &bytes[..len]);
    }

    #[test]
    fn extension_replies(id in any::<u32>(), (op, reply) in reply(), nfds in 0..=253_u8) {
        let mut bytes = Vec::new();
        reply.encode(id, op, nfds, &mut bytes).unwrap();
        let (ServerFrame::Ext(frame), used) = ServerFrame::decode(&bytes, Dialect::Extended).unwrap() else { panic!() };
        prop_assert_eq!((used, frame.id, frame.nfds), (bytes.len(), id, nfds));
        prop_assert_eq!(Reply::parse(op, frame.payload).unwrap(), reply);
    }

    /// A reader that does what `Incomplete` says gets the frame, and never asks for a byte beyond it.
    #[test]
    fn incomplete_leads_to_the_frame((op, reply) in reply()) {
        let mut bytes = Vec::new();
        reply.encode(1, op, 0, &mut bytes).unwrap();
        let mut have = 0;
        loop {
            match ServerFrame::decode(&bytes[..have], Dialect::Extended) {
                Ok((_, used)) => { prop_assert_eq!(used, bytes.len()); break }
                Err(DecodeError::Incomplete { needed }) => {
                    have += needed;
                    prop_assert!(have <= bytes.len());
                }
                Err(e) => return Err(TestCaseError::fail(e.to_string())),
            }
        }
    }

    #[test]
    fn v1_and_v2(id in any::<u32>(), flags in any::<u8>(), mode in any::<u8>(), uri in vec(any::<u8>(), 0..300),
                 content_len in any::<u64>(), status in prop::sample::select(Status::ALL), etag in vec(any::<u8>(), 0..100)) {
        let mut bytes = Vec::new();
        let request = v1::Request { mode, uri: &uri };
        request.encode(&mut bytes).unwrap();
        prop_assert_eq!(v1::Request::decode(&bytes), Ok((request, bytes.len())));

        bytes.clear();
        let frame = ClientFrame::Request(v2::Request { id, flags, mode, uri: &uri });
        frame.encode(&mut bytes).unwrap();
        prop_assert_eq!(ClientFrame::decode(&bytes, Dialect::V2), Ok((frame, bytes.len())));

        let items = [Tlv::Etag(&etag), Tlv::Latency(id), Tlv::Other(0x77, &etag)];
        let block = Metadata::build(&items).unwrap();
        let metadata = Metadata::parse(&block).unwrap();
        prop_assert_eq!(metadata.iter().collect::<Vec<_>>(), items);
        bytes.clear();
        let body = v1::Response { status, content_len, metadata };
        body.encode(&mut bytes).unwrap();
        prop_assert_eq!(v1::Response::decode(&bytes), Ok((body, bytes.len())));
        bytes.clear();
        let frame = ServerFrame::Response(v2::Response { id, body });
        frame.encode(&mut bytes).unwrap();
        prop_assert_eq!(ServerFrame::decode(&bytes, Dialect::V2), Ok((frame, bytes.len())));
    }

    #[test]
    fn segmented(id in any::<u32>(), (segments, inline) in segments()) {
        let frame = ServerFrame::Segmented(v2::Segmented {
            id, status: Status::Ok, metadata: Metadata::EMPTY, segments, inline: &inline,
        });
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        prop_assert_eq!(ServerFrame::decode(&bytes, Dialect::V2), Ok((frame, bytes.len())));
    }

    #[test]
    fn hellos(caps in any::<u16>(), pipeline in 0..=1000_u16, parallelism in any::<u8>()) {
        let mut bytes = Vec::new();
        let hello = Hello { caps: Caps::from_bits(caps), pipeline };
        hello.encode(&mut bytes);
        prop_assert_eq!(Hello::decode(&bytes), Ok((hello, 9)));
        bytes.clear();
        let ack = HelloAck { caps: Caps::from_bits(caps), pipeline, parallelism };
        ack.encode(&mut bytes);
        prop_assert_eq!(HelloAck::decode(&bytes), Ok((ack, 10)));
    }
}
