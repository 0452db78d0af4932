//! A store of a later version, with a tier that this client does not know: what the client knows is used as ever, the rest is
//! passed on, and no connection is lost for it.

mod fake_peer;

use fake_peer::{Peer, entry, file, read_all};
use objmapper_client::{ObjUri, Op, Tier, Want};
use objmapper_proto::ext::{Entry, Reply, Request, Stat, TierStat};

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

fn other() -> Tier {
    Tier::try_from(9).unwrap()
}

#[test]
fn a_tier_that_the_client_does_not_know_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, unknown, disk) = (dir.path().join("m"), dir.path().join("u"), dir.path().join("d"));
    for (root, body) in [(&memory, "memory"), (&unknown, "unknown"), (&disk, "disk")] {
        std::fs::create_dir_all(root.join("34")).unwrap();
        std::fs::write(root.join("34/0000000000001234"), body).unwrap();
    }
    let root = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if !conn.hello("4f424a4d02800000ff02") {
            return;
        }
        let Some((id, Request::Attach { .. })) = conn.request() else { panic!("not ATTACH") };
        // The unknown one in the middle: descriptors belong to tiers by their order.
        let tiers = [(Tier::Memory, &*memory), (other(), &*unknown), (Tier::Disk, &*disk)];
        conn.attached_with_tiers(id, (1, 1), &tiers, None);
        while let Some((id, request)) = conn.request() {
            match request {
                Request::Lookup { .. } => {
                    conn.reply(id, Op::Lookup, &Reply::Entry(Entry { tier: other(), ..entry(0x1234) }));
                }
                Request::Create { tier, .. } => {
                    assert_eq!(tier, Some(other()), "the client asks for a tier that it was told of");
                    let mut bytes = Vec::new();
                    Reply::Created { handle: 7, tier: other() }.encode(id, Op::Create, 1, &mut bytes).unwrap();
                    bytes.push(b'X');
                    conn.send_fds(&bytes, &[std::os::fd::AsFd::as_fd(&file(&root, "private", b""))]);
                }
                Request::Abort { .. } => {
                    let mut bytes = Vec::new();
                    Reply::Empty.encode(id, Op::Abort, 0, &mut bytes).unwrap();
                    // The client may have ended in the meantime.
                    let _ = std::io::Write::write_all(&mut conn.stream, &bytes);
                }
                Request::Stat => {
                    let tier = |tier, limit| TierStat { tier, limit, used: 0, pinned: 0, objects: 0, evictions: 0 };
                    let tiers = vec![tier(Tier::Memory, 1), tier(other(), 2)];
                    conn.reply(id, Op::Stat, &Reply::Stat(Stat { tiers, sessions: 1, private: 0, leases: 0 }));
                }
                request => panic!("{request:?}"),
            }
        }
    });
    let client = peer.config().connect().unwrap();
    let session = client.session().unwrap();
    assert_eq!(session.tiers().iter().map(|t| t.tier.code()).collect::<Vec<_>>(), [1, 9, 2]);
    for (tier, body) in [(Tier::Memory, "memory"), (other(), "unknown"), (Tier::Disk, "disk")] {
        assert_eq!(read_all(session.open(tier, 0x1234).unwrap()), body.as_bytes(), "{tier}");
    }
    let found = client.lookup(&uri("/a"), Want::PIN).unwrap().unwrap();
    assert_eq!(read_all(session.open_entry(&found.entry).unwrap()), b"unknown");
    assert_eq!(client.create(1, Some(other()), None).unwrap().tier(), other());
    assert_eq!(client.stat().unwrap().tiers[1].tier, other());
    assert_eq!(client.counters().disconnects, 0);
    assert_eq!(peer.accepted(), 1, "a connection was lost");
    drop(client);
    peer.finish();
}
