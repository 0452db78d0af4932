//! The bytes that the public v0.1 program sends and receives, both ways and from both sides.

use objmapper_proto::v2::{ClientFrame, Dialect, Hello, HelloAck, ServerFrame};
use objmapper_proto::{
    Caps, DecodeError, FD_BYTE, Malformed, Metadata, Mode, Segment, SegmentFlags, SegmentKind, Status, Tlv, v1, v2,
};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "odd number of hex digits");
    digits.chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

/// The bytes decode to `value`, and so does no beginning of them; `value` encodes to the bytes.
fn v1_request(wire: &str, mode: u8, uri: &[u8]) {
    let wire = hex(wire);
    let request = v1::Request { mode, uri };
    assert_eq!(v1::Request::decode(&wire), Ok((request, wire.len())));
    each_prefix(&wire, |b| v1::Request::decode(b).map(|_| ()));
    let mut out = Vec::new();
    request.encode(&mut out).unwrap();
    assert_eq!(out, wire);
}

fn v1_response(wire: &str, status: Status, content_len: u64, items: &[Tlv<'_>]) {
    let wire = hex(wire);
    let meta = Metadata::build(items).unwrap();
    let response = v1::Response { status, content_len, metadata: Metadata::parse(&meta).unwrap() };
    assert_eq!(v1::Response::decode(&wire), Ok((response, wire.len())));
    each_prefix(&wire, |b| v1::Response::decode(b).map(|_| ()));
    let mut out = Vec::new();
    response.encode(&mut out).unwrap();
    assert_eq!(out, wire);
}

fn client_frame(wire: &str, frame: ClientFrame<'_>) {
    let wire = hex(wire);
    assert_eq!(ClientFrame::decode(&wire, Dialect::V2), Ok((frame, wire.len())));
    assert_eq!(ClientFrame::decode(&wire, Dialect::Extended), Ok((frame, wire.len())));
    each_prefix(&wire, |b| ClientFrame::decode(b, Dialect::V2).map(|_| ()));
    let mut out = Vec::new();
    frame.encode(&mut out).unwrap();
    assert_eq!(out, wire);
}

fn server_frame(wire: &str, frame: &ServerFrame<'_>) {
    let wire = hex(wire);
    assert_eq!(ServerFrame::decode(&wire, Dialect::V2), Ok((frame.clone(), wire.len())));
    assert_eq!(ServerFrame::decode(&wire, Dialect::Extended), Ok((frame.clone(), wire.len())));
    each_prefix(&wire, |b| ServerFrame::decode(b, Dialect::V2).map(|_| ()));
    let mut out = Vec::new();
    frame.encode(&mut out).unwrap();
    assert_eq!(out, wire);
}

fn each_prefix(wire: &[u8], decode: impl Fn(&[u8]) -> Result<(), DecodeError>) {
    for n in 0..wire.len() {
        match decode(&wire[..n]) {
            Err(DecodeError::Incomplete { needed }) => {
                assert!(needed > 0 && n + needed <= wire.len(), "{n} bytes need {needed} of {}", wire.len());
            }
            other => panic!("{n} of {} bytes: {other:?}", wire.len()),
        }
    }
}

const EMPTY: v1::Response<'static> = v1::Response { status: Status::Ok, content_len: 0, metadata: Metadata::EMPTY };

#[test]
fn v1_get_creates_what_is_absent() {
    v1_request("3100082f742f6d69737331", Mode::Fd.byte(), b"/t/miss1");
    v1_response("0000000000000000000000", Status::Ok, 0, &[]);
    assert_eq!(FD_BYTE, 0x58);
}

#[test]
fn v1_delete() {
    v1_request("31000f2f64656c6574652f742f6d69737331", b'1', b"/delete/t/miss1");
    v1_response("0000000000000000010000", Status::Ok, 1, &[]);
    v1_response(
        "0100000000000000000013 ff00104f626a656374206e6f7420666f756e64",
        Status::NotFound,
        0,
        &[Tlv::Error(b"Object not found")],
    );
}

#[test]
fn v1_list_is_unsupported() {
    v1_request("3100052f6c697374", b'1', b"/list");
    // 0x28 bytes of metadata: a TLV of type ff with 37 bytes of text.
    let text = [b'x'; 37];
    v1_response(
        &format!("0500000000000000000028 ff0025{}", "78".repeat(37)),
        Status::Unsupported,
        0,
        &[Tlv::Error(&text)],
    );
}

#[test]
fn v1_mode_copy_is_unsupported() {
    v1_request("3200052f742f6d32", b'2', b"/t/m2");
    assert_eq!(Mode::try_from(b'2'), Ok(Mode::Copy));
    let text = [b'x'; 35];
    v1_response(
        &format!("0500000000000000000026 ff0023{}", "78".repeat(35)),
        Status::Unsupported,
        0,
        &[Tlv::Error(&text)],
    );
}

#[test]
fn v1_empty_uri() {
    v1_request("310000", b'1', b"");
    let text = [b'x'; 23];
    v1_response(&format!("110000000000000000001a ff0017{}", "78".repeat(23)), Status::Storage, 0, &[Tlv::Error(&text)]);
}

#[test]
fn v1_uri_over_the_limit_is_malformed_at_once() {
    assert_eq!(
        v1::Request::decode(&hex("311001")),
        Err(DecodeError::Malformed(Malformed::TooLong { field: "URI", value: 4097, limit: 4096 })),
    );
    let uri = vec![b'a'; 4096];
    let mut out = Vec::new();
    v1::Request { mode: b'1', uri: &uri }.encode(&mut out).unwrap();
    assert_eq!(v1::Request::decode(&out).unwrap().0.uri.len(), 4096);
    assert!(v1::Request { mode: b'1', uri: &[b'a'; 4097] }.encode(&mut out).is_err());
}

#[test]
fn v2_hello() {
    for (wire, caps, pipeline) in
        [("4f424a4d0200130010", 0x13, 16), ("4f424a4d0200000000", 0, 0), ("4f424a4d02800003e8", 0x8000, 1000)]
    {
        let wire = hex(wire);
        let hello = Hello { caps: Caps::from_bits(caps), pipeline };
        assert_eq!(Hello::decode(&wire), Ok((hello, Hello::WIRE_LEN)));
        each_prefix(&wire, |b| Hello::decode(b).map(|_| ()));
        let mut out = Vec::new();
        hello.encode(&mut out);
        assert_eq!(out, wire);
    }
}

#[test]
fn v2_hello_ack() {
    for (wire, pipeline, parallelism) in [("4f424a4d020000000102", 1, 2), ("4f424a4d020000000002", 0, 2)] {
        let wire = hex(wire);
        let ack = HelloAck { caps: Caps::NONE, pipeline, parallelism };
        assert_eq!(HelloAck::decode(&wire), Ok((ack, HelloAck::WIRE_LEN)));
        each_prefix(&wire, |b| HelloAck::decode(b).map(|_| ()));
        let mut out = Vec::new();
        ack.encode(&mut out);
        assert_eq!(out, wire);
    }
}

#[test]
fn v2_hello_with_wrong_version_or_magic() {
    assert_eq!(Hello::decode(&hex("4f424a4d0300000000")), Err(DecodeError::Malformed(Malformed::Version(3))));
    assert!(matches!(Hello::decode(b"OBJN"), Err(DecodeError::Malformed(Malformed::Magic(_)))));
    // At its first wrong byte, not when nine have come.
    assert!(matches!(Hello::decode(b"OX"), Err(DecodeError::Malformed(Malformed::Magic(_)))));
    assert!(matches!(HelloAck::decode(b"\x02"), Err(DecodeError::Malformed(Malformed::Magic(_)))));
    // A HELLO may wish for more than there is, an ACK may not grant it.
    assert_eq!(Hello::decode(&hex("4f424a4d020000ffff")).unwrap().0.pipeline, 1000);
    assert!(matches!(
        HelloAck::decode(&hex("4f424a4d020000ffff02")),
        Err(DecodeError::Malformed(Malformed::TooLong { .. }))
    ));
}

#[test]
fn v2_create_get_delete() {
    let request = |id, flags, uri| ClientFrame::Request(v2::Request { id, flags, mode: b'1', uri });
    client_frame("0101020304003100052f76322f61", request(0x0102_0304, 0, b"/v2/a"));
    client_frame("0100000007003100052f76322f61", request(7, 0, b"/v2/a"));
    client_frame("01000000080031000c2f64656c6574652f76322f61", request(8, 0, b"/delete/v2/a"));
    client_frame("0100000010023100072f76322f657068", request(16, v2::FLAG_EPHEMERAL, b"/v2/eph"));

    let response = |id, body| ServerFrame::Response(v2::Response { id, body });
    server_frame("02010203040000000000000000000000", &response(0x0102_0304, EMPTY));
    server_frame("02000000070000000000000000000000", &response(7, EMPTY));
    server_frame("02000000080000000000000000010000", &response(8, v1::Response { content_len: 1, ..EMPTY }));
}

#[test]
fn v2_close() {
    client_frame("0300", ClientFrame::Close { reason: 0 });
    server_frame("040000000000", &ServerFrame::CloseAck { outstanding: 0 });
    assert!(matches!(
        ServerFrame::decode(&hex("040100000000"), Dialect::V2),
        Err(DecodeError::Malformed(Malformed::Reserved { .. }))
    ));
}

#[test]
fn v2_unknown_type_and_second_hello() {
    for first in [0x00, 0x06, b'O', 0x12, 0xff] {
        assert!(matches!(
            ClientFrame::decode(&[first], Dialect::Extended),
            Err(DecodeError::Malformed(Malformed::Unknown { field: "frame type", .. }))
        ));
    }
    // Neither side takes the other's frames, and extensions only where they were granted.
    for first in [0x02, 0x04, 0x05, 0x11] {
        assert!(matches!(ClientFrame::decode(&[first], Dialect::Extended), Err(DecodeError::Malformed(_))));
    }
    for first in [0x01, 0x03, 0x10] {
        assert!(matches!(ServerFrame::decode(&[first], Dialect::Extended), Err(DecodeError::Malformed(_))));
    }
    assert!(matches!(ClientFrame::decode(&[0x10], Dialect::V2), Err(DecodeError::Malformed(_))));
    assert!(matches!(ServerFrame::decode(&[0x11], Dialect::V2), Err(DecodeError::Malformed(_))));
}

const EXAMPLE_META: &str = "010008000000000000000c 020008000000006553f100 05000101";

fn example_items() -> [Tlv<'static>; 3] {
    [Tlv::Size(12), Tlv::Mtime(1_700_000_000), Tlv::Backend(1)]
}

#[test]
fn example_server_fd_response() {
    let meta = hex(EXAMPLE_META);
    let metadata = Metadata::parse(&meta).unwrap();
    assert_eq!(metadata.iter().collect::<Vec<_>>(), example_items());
    assert_eq!(Metadata::build(&example_items()).unwrap(), meta);
    let body = v1::Response { status: Status::Ok, content_len: 0, metadata };
    server_frame(
        &format!("0200000001000000000000000000001a {EXAMPLE_META}"),
        &ServerFrame::Response(v2::Response { id: 1, body }),
    );
}

#[test]
fn example_server_segmented_response() {
    let meta = hex(EXAMPLE_META);
    let segmented = v2::Segmented {
        id: 2,
        status: Status::Ok,
        metadata: Metadata::parse(&meta).unwrap(),
        segments: vec![
            Segment {
                kind: SegmentKind::Inline,
                flags: SegmentFlags::NONE,
                copy_len: 16,
                logical_len: 16,
                offset: 0,
                storage_len: 16,
            },
            Segment {
                kind: SegmentKind::Fd,
                flags: SegmentFlags::FIN,
                copy_len: 0,
                logical_len: 12,
                offset: 0,
                storage_len: 12,
            },
        ],
        inline: b"sixteen bytes...",
    };
    assert_eq!(segmented.fd_count(), 1);
    assert_eq!(segmented.inline_of(0), Some(&b"sixteen bytes..."[..]));
    assert_eq!(segmented.inline_of(1), None);
    server_frame(
        &format!(
            "0500000002000002001a {EXAMPLE_META}
             00000000000000100000000000000010 00000000000000000000000000000010
             0101000000000000000000000000000c 0000000000000000000000000000000c
             7369787465656e2062797465732e2e2e"
        ),
        &ServerFrame::Segmented(segmented),
    );
}

#[test]
fn segments_that_cannot_be() {
    let head = "0500000002000001 0000";
    for (segment, why) in [
        ("03000000000000000000000000000000 00000000000000000000000000000000", "type"),
        ("01080000000000000000000000000000 00000000000000000000000000000000", "flags"),
        ("01000001000000000000000000000000 00000000000000000000000000000000", "reserved u16"),
        ("01000000000000010000000000000000 00000000000000000000000000000000", "copy_len of an fd"),
        ("01020000000000000000000000000000 00000000000000000000000000000000", "reuse of no fd"),
        ("01000000000000000000000000000000 ffffffffffffffff0000000000000001", "offset overflow"),
        ("00000000ffffffff0000000000000000 00000000000000000000000000000000", "inline over the limit"),
    ] {
        let wire = hex(&format!("{head}{segment}"));
        assert!(
            matches!(ServerFrame::decode(&wire, Dialect::V2), Err(DecodeError::Malformed(_))),
            "{why} was not refused"
        );
    }
    assert!(matches!(
        ServerFrame::decode(&hex("05000000020000410000"), Dialect::V2),
        Err(DecodeError::Malformed(Malformed::TooLong { field: "segment count", value: 65, limit: 64 }))
    ));
}

#[test]
fn metadata_out_of_bounds() {
    for (block, why) in [
        ("01000800", "an item beyond the end"),
        ("ff", "a type without a length"),
        ("0100040000000c", "a size of four bytes"),
        ("050002 0101", "a backend of two bytes"),
    ] {
        assert!(Metadata::parse(&hex(block)).is_err(), "{why} was not refused");
    }
    let wire = hex("000000000000000000 0401");
    assert_eq!(
        v1::Response::decode(&wire),
        Err(DecodeError::Malformed(Malformed::TooLong { field: "metadata", value: 1025, limit: 1024 })),
    );
    // A type of a later version is passed over, not refused.
    let block = hex("420001aa 010008000000000000000c");
    let metadata = Metadata::parse(&block).unwrap();
    assert_eq!(metadata.iter().collect::<Vec<_>>(), [Tlv::Other(0x42, b"\xaa"), Tlv::Size(12)]);
}

#[test]
fn status_codes() {
    let codes: Vec<u8> = Status::ALL.iter().map(|s| s.code()).collect();
    assert_eq!(
        codes,
        [0, 1, 2, 3, 4, 5, 0x10, 0x11, 0x12, 0x13, 0x14, 0x20, 0x21, 0x22, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35]
    );
    for code in 0..=255_u8 {
        assert_eq!(Status::try_from(code).is_ok(), codes.contains(&code));
    }
}
