//! Which URIs there are, and which of them a v0.1 server takes.

use objmapper_proto::{ObjUri, UriError};

#[test]
fn what_is_no_uri() {
    for (text, error) in [
        (&b""[..], UriError::Empty),
        (b"a", UriError::NoSlash),
        (b"http://h/a", UriError::NoSlash),
        (b"/", UriError::EmptySegment),
        (b"//a", UriError::EmptySegment),
        (b"/x//y", UriError::EmptySegment),
        (b"/x/", UriError::EmptySegment),
        (b"/../x", UriError::DotSegment),
        (b"/x/..", UriError::DotSegment),
        (b"/./x", UriError::DotSegment),
        (b"/x\0y", UriError::Nul),
        (&[b'/'; 4097], UriError::TooLong { len: 4097, limit: 4096 }),
    ] {
        assert_eq!(ObjUri::parse(text), Err(error), "{}", text.escape_ascii());
    }
}

#[test]
fn what_is_one() {
    for text in [&b"/a"[..], b"/a/b", b"/...", b"/.a", b"/a..", b"/\xff\n", b"/list", b"/a?b=c&d"] {
        let uri = ObjUri::parse(text).unwrap();
        assert_eq!(uri.as_bytes(), text);
        assert_eq!(uri.borrowed(), uri.clone().into_owned());
    }
    assert_eq!(ObjUri::parse(&b"/\xff\n"[..]).unwrap().to_string(), "/\\xff\\n");
}

#[test]
fn what_a_v01_server_does_not_take() {
    let long_segment = format!("/{}", "a".repeat(256));
    let long = "/aaaaaaa".repeat(65);
    for (text, error) in [
        ("/list", UriError::ReservedName),
        ("/list/x", UriError::ReservedName),
        ("/backend/x", UriError::ReservedName),
        ("/delete/x", UriError::ReservedName),
        (&long_segment, UriError::LongSegment { len: 256, limit: 255 }),
        (&long, UriError::TooLong { len: 520, limit: 512 }),
    ] {
        assert_eq!(ObjUri::try_from(text).unwrap().check_v01(), Err(error));
    }
    for text in ["/lists", "/x/list", "/deleted/x", &long_segment[..256], &long[..512]] {
        assert_eq!(ObjUri::try_from(text).unwrap().check_v01(), Ok(()));
    }
}
