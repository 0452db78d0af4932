//! Records that another client of the store has made, with valid checksums and anything in their fields.
//!
//! Whatever a record says, the child lives, and a request is answered by the origin, or by the record if it is a response
//! that varnishd could have got from an origin. `OBJM_SEED` repeats the choices of the random part.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_client::{Client, CommitOptions, ObjUri, UriSpace, Want};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{Stage, socket};
use objmapper_harness::process::wait_for;
use objmapper_harness::random::Random;
use objmapper_harness::record::Record;
use objmapper_harness::shared::status;

/// Bodies in heap, and bodies that a storage engine adopts.
const SIZES: [usize; 2] = [700, 200_000];

const BOUND: Duration = Duration::from_secs(30);

/// What the director's URIs begin with, and the test site's host.
const PREFIX: &[u8] = b"varnish";
const HOST: &[u8] = b"site.example";

/// A client of the store beside varnishd.
struct Other {
    client: Client,
    space: UriSpace,
}

impl Other {
    fn connect(stage: &Stage) -> Result<Self> {
        let client = Client::builder(socket(stage.dir())).connect()?;
        Ok(Self { client, space: UriSpace::new(&[PREFIX])? })
    }

    fn uri(&self, path: &str) -> ObjUri<'static> {
        self.space.uri(&[b"r", HOST, path.as_bytes()])
    }

    /// The record that answers `path`.
    fn read(&self, path: &str) -> Result<Record> {
        let found = self.client.lookup(&self.uri(path), Want::ENTRY)?.context("no record")?;
        let session = self.client.session().context("no session")?;
        let mut file = std::fs::File::from(session.open_entry(&found.entry)?);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes)?;
        Record::decode(&bytes)
    }

    /// Publishes `record` in the place of what answers `path`.
    fn replace(&self, path: &str, record: &Record) -> Result<()> {
        let bytes = record.encode();
        let mut object = self.client.create(bytes.len() as u64, None, None)?;
        let file = object.take_fd().context("no descriptor")?;
        std::fs::File::from(file).write_all(&bytes)?;
        object.commit(&self.uri(path), bytes.len() as u64, CommitOptions::default())?;
        Ok(())
    }
}

/// A change of one field.
type Change = (&'static str, fn(&mut Record));

/// Each of them is refused: the request is answered by the origin.
const REFUSED: &[Change] = &[
    ("status 0", |r| r.status = 0),
    ("status 99", |r| r.status = 99),
    ("status 100", |r| r.status = 100),
    ("status 206", |r| r.status = 206),
    ("status 304", |r| r.status = 304),
    ("status 1099", |r| r.status = 1099),
    ("status 65000", |r| r.status = 65_000),
    ("CR LF in the reason", |r| r.reason = b"OK\r\nX-Injected: 1".to_vec()),
    ("NUL in the reason", |r| r.reason = b"OK\0".to_vec()),
    ("CR LF in a value", |r| r.lines.push(b"A: b\r\nX-Injected: 1".to_vec())),
    ("LF in a value", |r| r.lines.push(b"A: b\nX-Injected: 1".to_vec())),
    ("NUL in a value", |r| r.lines.push(b"A: b\0c".to_vec())),
    ("a control character in a value", |r| r.lines.push(b"A: b\x01".to_vec())),
    ("no colon", |r| r.lines.push(b"no colon".to_vec())),
    ("no name", |r| r.lines.push(b": value".to_vec())),
    ("an empty line", |r| r.lines.push(Vec::new())),
    ("a space in a name", |r| r.lines.push(b"a b: c".to_vec())),
    ("a NUL in a name", |r| r.lines.push(b"a\0: c".to_vec())),
    ("Set-Cookie", |r| r.lines.push(b"Set-Cookie: session=another".to_vec())),
    ("private", |r| r.lines.push(b"Cache-Control: private".to_vec())),
    ("Vary *", |r| r.lines.push(b"Vary: *".to_vec())),
    ("a Vary that the key lacks", |r| r.lines.push(b"Vary: X-Miss".to_vec())),
    ("a Vary that is no list of names", |r| r.lines.push(b"Vary: a b".to_vec())),
    ("a t_origin before 1970", |r| r.t_origin = -1.0),
    ("a t_origin far ahead", |r| r.t_origin = 1e300),
    ("a t_origin a day ahead", |r| r.t_origin += 86_400.0),
    ("an infinite t_origin", |r| r.t_origin = f64::INFINITY),
    ("a ttl that is none", |r| r.durations[0] = f32::NAN),
    ("gzip bits of zeros", |r| r.gzip_bits = Some([0; 32])),
    ("gzip bits of ones", |r| r.gzip_bits = Some([0xff; 32])),
    ("another key's text", |r| r.text.push(b'x')),
    ("another log's nonce", |r| r.mark[0] ^= 1),
    ("a sequence that is not reached yet", |r| r.mark[16] = 0x7f),
    ("more headers than a record may have", |r| r.lines = vec![b"A: b".to_vec(); 1025]),
    ("bytes behind the head", |r| r.rest.extend([0; 9])),
];

/// Each of them is a response: the record may answer, or the origin.
const ACCEPTED: &[Change] = &[
    ("a ttl of 1e30", |r| r.durations[0] = 1e30),
    ("a grace of 1e30", |r| r.durations[1] = 1e30),
    ("a keep of 1e20", |r| r.durations[2] = 1e20),
    ("all durations at their end", |r| r.durations = [f32::MAX; 3]),
    ("negative durations", |r| r.durations = [-1.0, -1e30, f32::MIN]),
    ("all flags", |r| r.flags = 0xff),
    ("more headers than varnishd has room for", |r| r.lines.extend(vec![b"A: b".to_vec(); 500])),
    ("a header larger than the workspace", |r| r.lines.push([b"A: ", &[b'x'; 200_000][..]].concat())),
    ("a Content-Length of its own", |r| r.lines.push(b"Content-Length: 5".to_vec())),
    ("a Transfer-Encoding", |r| r.lines.push(b"Transfer-Encoding: chunked".to_vec())),
    ("an Age", |r| r.lines.push(b"Age: 99999999999999999999".to_vec())),
    ("a Date that is none", |r| r.lines.push(b"Date: never".to_vec())),
    ("a Content-Encoding that the body has not", |r| r.lines.push(b"Content-Encoding: br".to_vec())),
];

fn stage(arrangement: Arrangement) -> Result<Stage> {
    Stage::set(arrangement, |dir| Objmapperd::start(dir, "256m").map(Some))
}

/// Asks for `path`, and checks that what comes is the origin's body in a head that nobody has written into.
fn ask(stage: &Stage, path: &str) -> Result<String> {
    let response = stage.miss(path)?;
    ensure!(response.header("x-injected").is_none(), "a header was injected: {:?}", response.headers);
    ensure!(response.header("set-cookie").is_none(), "another user's cookie: {:?}", response.headers);
    Ok(status(&response).to_owned())
}

/// What the origin has answered is published: no publication is under way any more that could replace the next record.
fn replaced(stage: &Stage, path: &str) -> Result<()> {
    wait_for("the origin's answer to be found", BOUND, || Ok((ask(stage, path)? == "hit").then_some(())))
}

fn named(arrangement: Arrangement) -> Result<()> {
    let stage = stage(arrangement)?;
    let other = Other::connect(&stage)?;
    for size in SIZES {
        let path = stage.published(size)?;
        let good = other.read(&path)?;
        other.replace(&path, &good)?;
        ensure!(ask(&stage, &path)? == "hit", "a record that is copied as it is must be a hit");
        for (name, change) in REFUSED {
            let mut record = good.clone();
            change(&mut record);
            other.replace(&path, &record).context(*name)?;
            let status = ask(&stage, &path).context(*name)?;
            ensure!(status == "miss", "{name}: {status}");
            replaced(&stage, &path).context(*name)?;
        }
        for (name, change) in ACCEPTED {
            let mut record = good.clone();
            change(&mut record);
            other.replace(&path, &record).context(*name)?;
            ask(&stage, &path).context(*name)?;
            // And as varnishd's own object.
            stage.cache.get(&stage.client, &path).context(*name)?;
        }
    }
    // The lines about them are bounded: a peer decides how many records it spoils.
    let lines = stage.log().matches("a damaged record was removed").count();
    ensure!((1..=20).contains(&lines), "{lines} lines\n{}", stage.log());
    stage.end()
}

#[test]
fn every_field_at_its_extremes_and_copied() -> Result<()> {
    named(Arrangement::Malloc)
}

#[test]
fn every_field_at_its_extremes_and_adopted() -> Result<()> {
    named(Arrangement::Daemon)
}

/// Changes a field at random.
fn spoil(record: &mut Record, random: &mut Random) {
    let float = |random: &mut Random| f32::from_bits(random.next_u64() as u32);
    let bytes = |random: &mut Random| {
        let len = random.below(40);
        (0..len).map(|_| random.next_u64() as u8).collect::<Vec<u8>>()
    };
    match random.below(12) {
        0 => record.status = random.next_u64() as u16,
        1 => record.reason = bytes(random),
        2 => record.lines.push(bytes(random)),
        3 => {
            let line = random.below(record.lines.len().max(1));
            if let Some(line) = record.lines.get_mut(line) {
                let at = random.below(line.len().max(1));
                if let Some(byte) = line.get_mut(at) {
                    *byte = random.next_u64() as u8;
                }
            }
        }
        4 => record.t_origin = f64::from_bits(random.next_u64()),
        5 => record.durations[random.below(3)] = float(random),
        6 => record.flags = random.next_u64() as u8,
        7 => {
            let mut bits = [0; 32];
            bits.fill_with(|| if random.below(2) == 0 { 0 } else { random.next_u64() as u8 });
            record.gzip_bits = Some(bits);
            record.lines.push(b"Content-Encoding: gzip".to_vec());
        }
        8 => record.vary = Some((bytes(random), bytes(random))),
        9 => record.lines.push([&b"Vary: "[..], &bytes(random)].concat()),
        10 => record.mark[random.below(24)] = random.next_u64() as u8,
        _ => record.trailer[8 + random.below(4)] = random.next_u64() as u8,
    }
}

fn at_random(arrangement: Arrangement) -> Result<()> {
    let mut random = Random::new(Random::seed());
    let stage = stage(arrangement)?;
    let other = Other::connect(&stage)?;
    for size in SIZES {
        let path = stage.published(size)?;
        let good = other.read(&path)?;
        for round in 0..100 {
            let mut record = good.clone();
            for _ in 0..=random.below(3) {
                spoil(&mut record, &mut random);
            }
            other.replace(&path, &record)?;
            record.body.clear();
            // The head may be odd, but it is well-formed; or the origin is asked.
            let response =
                stage.cache.miss(&stage.client, &path).with_context(|| format!("round {round}: {record:?}"))?;
            let known = [200, record.status % 1000].contains(&response.status);
            ensure!(known, "round {round}: {record:?}: {}", response.status);
        }
    }
    let varnishd = stage.cache.varnishd()?;
    ensure!(varnishd.panic().is_none(), "{:?}", varnishd.panic());
    ensure!(varnishd.counter("MGT.child_panic")? == 0, "the child has panicked");
    // It still shares.
    replaced(&stage, &stage.new_path(700))
}

#[test]
fn any_field_at_random_and_copied() -> Result<()> {
    at_random(Arrangement::Malloc)
}

#[test]
fn any_field_at_random_and_adopted() -> Result<()> {
    at_random(Arrangement::Daemon)
}
