//! Records that an older version published: `RECORD.md`, the bit 0x80 of a head's flags.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use common::*;
use objmapper_client::{Client, CommitOptions, ObjUri, Want};
use objmapper_records::{MissReason, Outcome};
use xxhash_rust::xxh3::Xxh3;

const TRAILER_LEN: usize = 48;
const COVERED: usize = 32;

/// The same record as a version published it that did not record whether a body was parsed for ESI.
fn older(file: &[u8]) -> Vec<u8> {
    let (rest, trailer) = file.split_at(file.len() - TRAILER_LEN);
    let head_len = u32::from_be_bytes(trailer[12..16].try_into().unwrap()) as usize;
    let (body, head) = rest.split_at(rest.len() - head_len);
    let mut head = head.to_vec();
    let text_len = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
    let vary = 4 + text_len;
    assert_eq!(head[vary], 0, "it does not vary");
    // The log's nonce and sequence, then the times.
    let flags = vary + 1 + 24 + 8 + 12;
    assert_eq!(head[flags] & 0x80, 0x80);
    head[flags] &= 0x7f;
    let mut sum = Xxh3::new();
    sum.update(&head);
    sum.update(&trailer[..COVERED]);
    [body, &head, &trailer[..COVERED], &sum.digest128().to_be_bytes()].concat()
}

fn replace(client: &Client, uri: &ObjUri<'_>) {
    let found = client.lookup(uri, Want::FD).unwrap().unwrap();
    let file = std::fs::File::from(found.fd.unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let bytes = older(&bytes);
    let mut draft = client.create(bytes.len() as u64, None, None).unwrap();
    let file = std::fs::File::from(draft.take_fd().unwrap());
    file.write_all_at(&bytes, 0).unwrap();
    drop(file);
    draft.commit(uri, bytes.len() as u64, CommitOptions::default()).unwrap();
}

/// It is unknown what it would have to be parsed for: it is a miss, which replaces it.
#[test]
fn a_record_of_which_it_is_not_known_whether_it_was_parsed_is_a_miss() {
    let site = Site::memory();
    let a = site.cache();
    let client = Client::builder(site.socket()).connect().unwrap();
    let r = req("/a");
    a.put(&r, head(60.0, &["ETag: \"1\""]), b"<esi:include/>");
    for now in [NOW, NOW + 61.0] {
        replace(&client, a.key("/a").uri());
        let Got::Miss(miss) = a.get_at(&r, now, PATIENCE) else { panic!() };
        assert_eq!(miss.why, MissReason::Outdated);
        assert_eq!(a.publish(miss.ticket.unwrap(), &r, head(60.0, &[]), b"new"), Outcome::Published);
        assert_eq!(a.get(&r).body(), b"new");
    }
    // It is intact, and counted as no damage.
    assert_eq!(a.counters.c_damaged.load(Relaxed), 0);
    assert!(a.notices.lock().unwrap().iter().all(|notice| !format!("{notice:?}").contains("Damaged")));
}
