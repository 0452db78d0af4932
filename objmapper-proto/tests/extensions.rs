//! The extension frames: their bytes as in EXTENSIONS.md, and what is refused.

use std::num::NonZeroU64;

use objmapper_proto::ext::{
    Attached, BadRequest, BatchReply, BodyPath, Commit, Entry, EntryFlags, Fence, IfVersion, LeaseOutcome, ListPage,
    Op, Reply, ReplyFrame, Request, Stat, Tier, TierLimits, TierStat, Token, Want,
};
use objmapper_proto::v2::{ClientFrame, Dialect, ServerFrame};
use objmapper_proto::{DecodeError, Malformed, ObjUri, Status, limits};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

fn request(wire: &str, expected: &Request<'_>) {
    let wire = hex(wire);
    let mut out = Vec::new();
    expected.encode(9, &mut out).unwrap();
    assert_eq!(out, wire, "{expected:?}");
    let (ClientFrame::Ext(frame), used) = ClientFrame::decode(&wire, Dialect::Extended).unwrap() else {
        panic!("not an extension frame")
    };
    assert_eq!((used, frame.id), (wire.len(), 9));
    assert_eq!(&Request::parse(frame.op, frame.flags, frame.payload).unwrap(), expected);
    for n in 0..wire.len() {
        assert!(matches!(
            ClientFrame::decode(&wire[..n], Dialect::Extended),
            Err(DecodeError::Incomplete { needed }) if needed > 0 && n + needed <= wire.len()
        ));
    }
    // One byte more or less in the payload is refused.
    if expected.op() != Op::Batch {
        let mut long = frame.payload.to_vec();
        long.push(0);
        assert!(Request::parse(frame.op, frame.flags, &long).is_err());
        if let Some((_, short)) = frame.payload.split_last() {
            assert!(Request::parse(frame.op, frame.flags, short).is_err());
        }
    }
    assert_eq!(
        Request::parse(frame.op, frame.flags | 0x80, frame.payload).unwrap_err().status(),
        Status::InvalidRequest
    );
}

fn reply(wire: &str, op: Op, nfds: u8, expected: &Reply<'_>) {
    let wire = hex(wire);
    let mut out = Vec::new();
    expected.encode(9, op, nfds, &mut out).unwrap();
    assert_eq!(out, wire, "{expected:?}");
    let (ServerFrame::Ext(frame), used) = ServerFrame::decode(&wire, Dialect::Extended).unwrap() else {
        panic!("not an extension frame")
    };
    assert_eq!((used, frame.id, frame.op, frame.nfds), (wire.len(), 9, op.code(), nfds));
    assert_eq!(&Reply::parse(op, frame.payload).unwrap(), expected);
    let mut long = frame.payload.to_vec();
    long.push(0);
    assert!(Reply::parse(op, &long).is_err());
    if let Some((_, short)) = frame.payload.split_last() {
        assert!(Reply::parse(op, short).is_err());
    }
}

const TOKEN: &str = "000102030405060708090a0b0c0d0e0f";

fn token() -> Token {
    Token([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
}

/// A COMMIT's payload without a fence.
const COMMIT: &str = "0000000000000007 0000000000000100 0000000000000005 0000000000000000 0002 2f61";

const ENTRY: &str = "0000000000000011 0000000000000022 01 06 0000000000010000 000000000000000a fffffffffffffffe";

fn entry() -> Entry {
    Entry {
        object: 0x11,
        version: 0x22,
        tier: Tier::Memory,
        flags: EntryFlags::PINNED.union(EntryFlags::FOREIGN),
        length: 65536,
        mtime: 10,
        expires: -2,
    }
}

#[test]
fn requests() {
    request(
        &format!("10 00000009 01 01 00000010 {TOKEN}"),
        &Request::Attach { session: token(), directories: true, board: false, number: false },
    );
    request(
        &format!("10 00000009 01 03 00000010 {TOKEN}"),
        &Request::Attach { session: token(), directories: true, board: true, number: false },
    );
    request(
        &format!("10 00000009 01 07 00000010 {TOKEN}"),
        &Request::Attach { session: token(), directories: true, board: true, number: true },
    );
    request("10 00000009 02 03 00000004 0002 2f61", &Request::Lookup { uri: uri("/a"), want: Want::FD_AND_PIN });
    request(
        "10 00000009 03 00 0000000d 02 0000000000000100 0002 2f61",
        &Request::Create { tier: Some(Tier::Disk), length: 256, uri: Some(uri("/a")) },
    );
    request(
        "10 00000009 03 00 0000000b 00 0000000000000000 0000",
        &Request::Create { tier: None, length: 0, uri: None },
    );
    request(
        "10 00000009 04 00 00000010 0000000000000007 0000000000000100",
        &Request::Reserve { handle: 7, length: 256 },
    );
    let commit = Commit {
        handle: 7,
        length: 256,
        expires: 5,
        if_version: IfVersion::Absent,
        uri: uri("/a"),
        want: Want::PIN,
        ephemeral: true,
        fence: None,
    };
    let commit_payload = COMMIT;
    request(&format!("10 00000009 05 06 00000024 {commit_payload}"), &Request::Commit(commit.clone()));
    let fenced = Commit { fence: Some(Fence { shard: 0xabc, value: 0xfedc_ba98_7654_3210 }), ..commit.clone() };
    request(
        &format!("10 00000009 05 0e 00000030 {commit_payload} 00000abc fedcba9876543210"),
        &Request::Commit(fenced.clone()),
    );
    request("10 00000009 06 00 00000008 0000000000000007", &Request::Abort { handle: 7 });
    request(
        "10 00000009 07 00 0000000c ffffffffffffffff 0002 2f61",
        &Request::Delete { if_version: IfVersion::Any, uri: uri("/a"), evict: false },
    );
    request(
        "10 00000009 07 01 0000000c 0000000000000007 0002 2f61",
        &Request::Delete { if_version: IfVersion::from_raw(7), uri: uri("/a"), evict: true },
    );
    request("10 00000009 08 00 00000000", &Request::Stat);
    request(
        "10 00000009 09 00 0000000a 0003 2f612f 0001 ff 0010",
        &Request::List { prefix: b"/a/", cursor: b"\xff", max: 16 },
    );
    request(
        "10 00000009 0a 01 0000000c 00000064 000003e8 0002 2f61",
        &Request::Lease { wait: 100, hold: 1000, uri: uri("/a"), want: Want::FD },
    );
    request("10 00000009 0b 00 0000000c 0000000000000005 00000064", &Request::Unlease { lease: 5, refuse: 100 });
    request(
        "10 00000009 0c 00 00000012 0002 0000000000000001 0000000000000002",
        &Request::Release { objects: vec![1, 2] },
    );
    request(
        &format!(
            "10 00000009 0d 00 0000003e 0003 02 01 00000004 0002 2f61 05 06 00000024 {commit_payload} 0c 00 00000002 0000"
        ),
        &Request::Batch(vec![
            Request::Lookup { uri: uri("/a"), want: Want::FD },
            Request::Commit(commit),
            Request::Release { objects: vec![] },
        ]),
    );
    request(
        &format!("10 00000009 0d 00 00000038 0001 05 0e 00000030 {commit_payload} 00000abc fedcba9876543210"),
        &Request::Batch(vec![Request::Commit(fenced)]),
    );
    request("10 00000009 0e 00 00000000", &Request::Detach);
    request(
        "10 00000009 0f 00 00000010 0000000000000003 0000000000000102",
        &Request::Lost { connection: 3, read: 258 },
    );
}

#[test]
fn replies() {
    let attached = Attached {
        instance: token(),
        session: Token([0xff; 16]),
        version: 1,
        tiers: vec![TierLimits { tier: Tier::Disk, limit: 256, used: 16 }],
        connection: None,
    };
    let payload = format!("{TOKEN} {} 01 01 02 0000000000000100 0000000000000010", "ff".repeat(16));
    reply(&format!("11 00000009 01 00 01 00000033 {payload}"), Op::Attach, 1, &Reply::Attached(attached.clone()));
    reply(
        &format!("11 00000009 01 00 01 0000003b {payload} 0000000000000007"),
        Op::Attach,
        1,
        &Reply::Attached(Attached { connection: Some(7), ..attached }),
    );
    reply(&format!("11 00000009 02 00 01 0000002a {ENTRY}"), Op::Lookup, 1, &Reply::Entry(entry()));
    reply(&format!("11 00000009 05 00 00 0000002a {ENTRY}"), Op::Commit, 0, &Reply::Entry(entry()));
    reply(
        "11 00000009 03 00 01 00000009 0000000000000007 01",
        Op::Create,
        1,
        &Reply::Created { handle: 7, tier: Tier::Memory },
    );
    for op in [Op::Reserve, Op::Abort, Op::Delete, Op::Unlease, Op::Release, Op::Detach, Op::Lost] {
        reply(&format!("11 00000009 {:02x} 00 00 00000000", op.code()), op, 0, &Reply::Empty);
    }
    reply(
        "11 00000009 08 00 00 00000036 01 01 0000000000000001 0000000000000002 0000000000000003 0000000000000004
         0000000000000005 00000006 00000007 00000008",
        Op::Stat,
        0,
        &Reply::Stat(Stat {
            tiers: vec![TierStat { tier: Tier::Memory, limit: 1, used: 2, pinned: 3, objects: 4, evictions: 5 }],
            sessions: 6,
            private: 7,
            leases: 8,
        }),
    );
    reply(
        &format!("11 00000009 09 00 00 00000033 0001 0002 2f61 {ENTRY} 0001 01"),
        Op::List,
        0,
        &Reply::List(ListPage { items: vec![(uri("/a"), entry())], cursor: &[1] }),
    );
    reply(
        &format!("11 00000009 0a 00 01 0000002b 00 {ENTRY}"),
        Op::Lease,
        1,
        &Reply::Lease(LeaseOutcome::Present(entry())),
    );
    reply(
        "11 00000009 0a 00 00 00000009 01 0000000000000005",
        Op::Lease,
        0,
        &Reply::Lease(LeaseOutcome::Granted { lease: 5 }),
    );
    reply(
        "11 00000009 0a 00 00 00000005 02 00000064",
        Op::Lease,
        0,
        &Reply::Lease(LeaseOutcome::Refused { retry: 100 }),
    );
    reply(
        &format!("11 00000009 0d 00 01 0000003d 0002 02 00 01 0000002a {ENTRY} 07 01 00 00000003 6e6f6e"),
        Op::Batch,
        1,
        &Reply::Batch(vec![
            BatchReply::Done { op: Op::Lookup, nfds: 1, reply: Reply::Entry(entry()) },
            BatchReply::Failed { op: Op::Delete, status: Status::NotFound, message: "non".into() },
        ]),
    );
}

#[test]
fn failures_carry_a_bounded_message() {
    let mut out = Vec::new();
    ReplyFrame::encode_failure(9, Op::Create.code(), Status::Full, &"é".repeat(200), &mut out);
    let (ServerFrame::Ext(frame), used) = ServerFrame::decode(&out, Dialect::Extended).unwrap() else { panic!() };
    assert_eq!((used, frame.status, frame.payload.len()), (out.len(), Status::Full, limits::MAX_MESSAGE));
    assert_eq!(frame.message(), "é".repeat(128));

    let frame = ReplyFrame { id: 1, op: 2, status: Status::Internal, nfds: 0, payload: b"bad \xff" };
    assert_eq!(frame.message(), "bad \u{fffd}");
}

#[test]
fn a_payload_that_means_nothing_is_answered_and_does_not_end_the_connection() {
    let refused = |op: u8, flags: u8, payload: &str| Request::parse(op, flags, &hex(payload)).unwrap_err();
    assert_eq!(refused(0x10, 0, ""), BadRequest::UnknownOp(0x10));
    assert_eq!(refused(0x00, 0, "").status(), Status::Unsupported);
    for (op, flags, payload, why) in [
        (0x02, 0x04, "00022f61", "a reserved flag"),
        (0x02, 0, "0001", "a URI beyond the end"),
        (0x02, 0, "0000", "no URI"),
        (0x02, 0, "0001 2f", "an empty segment"),
        (0x02, 0, "0003 2f2e2e", ".."),
        (0x02, 0, "0003 2f6100", "NUL"),
        (0x02, 0, "1001", "a URI over the limit"),
        (0x05, 0x08, &format!("{COMMIT} 00001000 0000000000000000"), "a fence that no board has"),
        (0x05, 0x08, COMMIT, "no fence where one is announced"),
        (0x05, 0, &format!("{COMMIT} 00000000 0000000000000000"), "a fence that nothing announces"),
        (0x07, 0x02, "0000000000000000 0002 2f61", "a reserved flag of DELETE"),
        (0x01, 0x08, TOKEN, "a reserved flag of ATTACH"),
        (0x0c, 0, "ffff 0000000000000000", "a count beyond the end"),
        (0x0d, 0, "0001 0d 00 00000002 0000", "a batch in a batch"),
        (0x0d, 0, "0001 08 00 00000000", "a STAT in a batch"),
        (0x0d, 0, "0101", "too many operations"),
        (0x0d, 0, "0001 02 00 00000005 00022f61", "an operation beyond the end"),
    ] {
        assert_eq!(refused(op, flags, payload).status(), Status::InvalidRequest, "{why}");
    }
}

#[test]
fn a_frame_that_cannot_be_delimited_is_malformed() {
    let too_long = |e| matches!(e, DecodeError::Malformed(Malformed::TooLong { .. }));
    let over = hex("10 00000001 02 00 00100001");
    assert!(too_long(ClientFrame::decode(&over, Dialect::Extended).unwrap_err()));
    let over = hex("11 00000001 02 00 00 00100001");
    assert!(too_long(ServerFrame::decode(&over, Dialect::Extended).unwrap_err()));
    let fds = hex("11 00000001 02 00 fe 00000000");
    assert!(too_long(ServerFrame::decode(&fds, Dialect::Extended).unwrap_err()));
    let status = hex("11 00000001 02 7f 00 00000000");
    assert!(matches!(ServerFrame::decode(&status, Dialect::Extended), Err(DecodeError::Malformed(_))));
}

#[test]
fn replies_that_cannot_be() {
    for (op, payload, why) in [
        (Op::Lookup, ENTRY.replace(" 01 06 ", " 00 06 "), "no tier"),
        (Op::Lookup, ENTRY.replace(" 01 06 ", " 01 08 "), "reserved entry flags"),
        (Op::Lease, "03".into(), "an unknown outcome"),
        (Op::Stat, "09".into(), "too many tiers"),
        (Op::Batch, format!("0001 02 00 02 0000002a {ENTRY}"), "two descriptors for one body"),
        (Op::Batch, "0001 02 01 01 00000000".into(), "a descriptor for a failure"),
        (Op::List, "ffff 0002 2f61".into(), "a count beyond the end"),
    ] {
        assert!(Reply::parse(op, &hex(&payload)).is_err(), "{why} was not refused");
    }
}

#[test]
fn encoding_refuses_what_decoding_would_refuse() {
    let mut out = b"before".to_vec();
    let lookup = Request::Lookup { uri: uri("/a"), want: Want::ENTRY };
    assert!(Request::Batch(vec![lookup.clone(); 257]).encode(1, &mut out).is_err());
    assert!(Request::Batch(vec![Request::Stat]).encode(1, &mut out).is_err());
    assert!(Request::List { prefix: &[b'/'; 4097], cursor: b"", max: 1 }.encode(1, &mut out).is_err());
    assert!(Request::Release { objects: vec![1; 65536] }.encode(1, &mut out).is_err());
    // 256 commits of the longest URIs are more than a payload may be.
    let long = ObjUri::parse(format!("/{}", "a".repeat(4095)).into_bytes()).unwrap();
    let commit = Request::Commit(Commit {
        handle: 1,
        length: 0,
        expires: 0,
        if_version: IfVersion::Any,
        uri: long,
        want: Want::ENTRY,
        ephemeral: false,
        fence: None,
    });
    assert!(Request::Batch(vec![commit.clone(); 256]).encode(1, &mut out).is_err());
    assert_eq!(out, b"before", "a failure leaves the buffer as it was");
    Request::Batch(vec![commit; 200]).encode(1, &mut out).unwrap();
}

#[test]
fn if_version() {
    let three = IfVersion::Is(NonZeroU64::new(3).unwrap());
    for (condition, raw) in [(IfVersion::Any, u64::MAX), (IfVersion::Absent, 0), (three, 3)] {
        assert_eq!(condition.raw(), raw);
        assert_eq!(IfVersion::from_raw(raw), condition);
    }
    assert!(IfVersion::Any.allows(None) && IfVersion::Any.allows(Some(1)));
    assert!(IfVersion::Absent.allows(None) && !IfVersion::Absent.allows(Some(1)));
    assert!(three.allows(Some(3)) && !three.allows(Some(4)) && !three.allows(None));
}

#[test]
fn body_paths() {
    let path = BodyPath::new(0xfedc_ba98_7654_3210);
    assert_eq!(path.as_str(), "10/fedcba9876543210");
    assert_eq!(path.directory(), "10");
    assert_eq!(path.as_c_str().to_bytes(), path.as_str().as_bytes());
    assert_eq!(BodyPath::new(0).as_str(), "00/0000000000000000");
}

#[test]
fn a_token_is_not_shown_whole() {
    assert_eq!(format!("{:?}", token()), "Token(0001..)");
}
