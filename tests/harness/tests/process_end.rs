//! What remains in objmapperd when varnishd ends, and varnishd as an ordinary user.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::needs::Need;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, User, Varnishd};

/// Well below the grace time of a session (60 s).
const BOUND: Duration = Duration::from_secs(20);

const LARGE: usize = 3 * 1024 * 1024 + 17;

/// nobody, on Debian.
const ORDINARY: User = User { uid: 65_534, gid: 65_534 };

fn origin(dir: &Path) -> Result<(H2o, String)> {
    let root = dir.join("site");
    std::fs::create_dir(&root)?;
    site::write(&root, "large", 1, LARGE)?;
    let h2o = H2o::start(dir, &root)?;
    let (host, port) = (h2o.address().ip(), h2o.address().port());
    let vcl = format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n");
    Ok((h2o, vcl))
}

fn fetch(varnishd: &Varnishd, path: &str) -> Result<()> {
    let response = Client::new().fetch(&varnishd.url(path))?;
    ensure!(response.status == 200, "{path}: status {}", response.status);
    ensure!(response.body == site::bytes(1, LARGE), "{path}: the body differs");
    Ok(())
}

#[test]
fn bodies_leave_objmapperd_when_varnishd_stops() -> Result<()> {
    let dir = open_directory()?;
    let (_h2o, vcl) = origin(dir.path())?;
    let daemon = Objmapperd::start(dir.path(), "1g")?;
    let start = daemon.stat()?;
    let arrangement = Arrangement::Daemon;
    let storage = [arrangement.storage("s0", "100m", Some(&daemon.socket()), "")];
    let varnishd = Varnishd::start(dir.path(), &Options::new(arrangement, &storage, &vcl))?;
    wait_for("the engine to find objmapperd", BOUND, || Ok((varnishd.counter("OBJM.s0.g_happy")? == 1).then_some(())))?;
    for number in 0..3 {
        fetch(&varnishd, &format!("/large?{number}"))?;
    }
    wait_for(
        "the bodies to be published",
        BOUND,
        || Ok((varnishd.counter("OBJM.s0.c_published")? == 3).then_some(())),
    )?;
    let held = daemon.stat()?;
    ensure!(held.tiers[0].used >= start.tiers[0].used + 3 * LARGE as u64, "{held:?}");
    ensure!(held.tiers[0].objects == start.tiers[0].objects + 3, "{held:?}");

    varnishd.stop()?;
    wait_for("objmapperd to be as it was", BOUND, || {
        let now = daemon.stat()?;
        let same = now.tiers[0].used == start.tiers[0].used && now.tiers[0].objects == start.tiers[0].objects;
        Ok((same && now.sessions == start.sessions).then_some(()))
    })
}

/// Whether a process has the root of a tmpfs open that is mounted nowhere: such a root has no path but "/".
fn holds_detached_tmpfs(pid: u32) -> Result<bool> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // One that was closed meanwhile is not it.
        let (Ok(target), Ok(fs)) = (std::fs::read_link(&path), statfs(&path)) else { continue };
        if target == Path::new("/") && fs.filesystem_type() == TMPFS_MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn an_ordinary_user_has_a_memory_tier_of_its_own() -> Result<()> {
    if Need::UserNamespaces.skips("process_end::an_ordinary_user_has_a_memory_tier_of_its_own")? {
        return Ok(());
    }
    let dir = open_directory()?;
    let (_h2o, vcl) = origin(dir.path())?;
    let arrangement = Arrangement::Embedded;
    let storage = [arrangement.storage("s0", "100m", None, "")];
    let user = Some(ORDINARY);
    let varnishd = Varnishd::start(
        dir.path(),
        &Options { arrangement, storage: &storage, listen: &[], vcl: &vcl, parameters: &[], user, descriptors: None },
    )?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", varnishd.child_pid()?))?;
    let uid = format!("Uid:\t{0}\t{0}\t{0}\t{0}", ORDINARY.uid);
    ensure!(status.contains(&uid) && status.contains("CapEff:\t0000000000000000"), "{status}");
    // Missed and hit.
    fetch(&varnishd, "/large")?;
    fetch(&varnishd, "/large")?;
    ensure!(varnishd.counter("OBJM.s0.g_bodies")? == 1, "the body is not in objmapper:\n{}", varnishd.output());
    ensure!(varnishd.counter("OBJM.s0.g_body_bytes")? == LARGE as u64, "not the whole body");
    // Such a user cannot mount by itself: the helper did. Without it, bodies would be below /dev/shm.
    ensure!(holds_detached_tmpfs(varnishd.child_pid()?)?, "no tmpfs of its own:\n{}", varnishd.output());
    ensure!(!varnishd.output().contains("/dev/shm"), "{}", varnishd.output());
    ensure!(varnishd.panic().is_none(), "{:?}", varnishd.panic());
    varnishd.stop()
}

/// Becomes a program in a mount namespace and a changed root, where no user namespaces can be made, without the right to
/// mount. The first argument is a directory for the root.
const WITHOUT_MOUNTS: &str = r#"
set -e
root=$1; shift
mount --make-rprivate /
mount --rbind / "$root"
exec chroot "$root" setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"
"#;

#[test]
fn nothing_stays_in_shared_memory_where_mounts_are_forbidden() -> Result<()> {
    if Need::Mounts.skips("process_end::nothing_stays_in_shared_memory_where_mounts_are_forbidden")? {
        return Ok(());
    }
    let dir = open_directory()?;
    let (_h2o, vcl) = origin(dir.path())?;
    let arrangement = Arrangement::Embedded;
    let storage = [arrangement.storage("s0", "100m", None, "")];
    for user in [None, Some(ORDINARY)] {
        let own = dir.path().join(if user.is_some() { "ordinary" } else { "jailed" });
        let root = own.join("root");
        std::fs::create_dir_all(&root)?;
        let options = Options {
            arrangement,
            storage: &storage,
            listen: &[],
            vcl: &vcl,
            parameters: &[],
            user,
            descriptors: None,
        };
        let root = root.display().to_string();
        let varnishd =
            Varnishd::start_behind(&own, &options, &["unshare", "--mount", "sh", "-c", WITHOUT_MOUNTS, "sh", &root])?;
        fetch(&varnishd, "/large")?;
        fetch(&varnishd, "/large")?;
        ensure!(varnishd.counter("OBJM.s0.g_bodies")? == 1, "the body is not in objmapper:\n{}", varnishd.output());
        let output = varnishd.output();
        let words = output.split_whitespace().map(|word| word.trim_end_matches(';'));
        let mut directories: Vec<_> = words.filter(|word| word.starts_with("/dev/shm/objmapper-")).collect();
        directories.dedup();
        ensure!(directories.len() == 1 && Path::new(directories[0]).is_dir(), "no directory in use:\n{output}");
        varnishd.stop()?;
        ensure!(!Path::new(directories[0]).exists(), "{} stays", directories[0]);
    }
    Ok(())
}
