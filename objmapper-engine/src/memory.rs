//! The memory that this process may use: the machine's, or less in a control group (cgroups(7)). The default of
//! `fallback_heap` is a part of it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

/// Bytes of memory that this process may use; `None` if the system does not say.
pub(crate) fn available() -> Option<u64> {
    let machine = machine();
    let group = group(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn machine() -> Option<u64> {
    let value = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    value(SysconfVar::_PHYS_PAGES)?.checked_mul(value(SysconfVar::PAGE_SIZE)?)
}

/// The smallest limit of the control groups that `membership` (/proc/self/cgroup) names and of those above them, in the
/// hierarchies mounted at `mounts`. Version 2 has one hierarchy there, version 1 has the memory controller's in `memory`.
fn group(membership: &Path, mounts: &Path) -> Option<u64> {
    let text = fs::read_to_string(membership).ok()?;
    let limits = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        if controllers.is_empty() {
            // A hybrid system mounts version 2 beside the controllers of version 1, without the memory controller.
            lowest(mounts, path, "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            lowest(&mounts.join("memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}

/// The smallest number in files `name` of the group at `path` and those above it. In a container the path may be the
/// host's, of which nothing is mounted: the root, which is, is the container's own group then.
fn lowest(mount: &Path, path: &str, name: &str) -> Option<u64> {
    let relative: PathBuf =
        Path::new(path).components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
    let limits = relative.ancestors().filter_map(|group| {
        // "max" is no limit; version 1 says so by a number above any machine's memory.
        fs::read_to_string(mount.join(group).join(name)).ok()?.trim().parse::<u64>().ok()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_machine_says_how_much_it_has() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn version_2_the_lowest_limit_on_the_way_up_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (membership, mounts) = (dir.path().join("cgroup"), dir.path().join("fs"));
        write(membership.clone(), "0::/system.slice/varnish.service\n");
        assert_eq!(group(&membership, &mounts), None, "nothing is mounted");
        write(mounts.join("system.slice/varnish.service/memory.max"), "max\n");
        assert_eq!(group(&membership, &mounts), None);
        write(mounts.join("system.slice/memory.max"), "1000000\n");
        assert_eq!(group(&membership, &mounts), Some(1_000_000));
        write(mounts.join("system.slice/varnish.service/memory.max"), "4000\n");
        assert_eq!(group(&membership, &mounts), Some(4000));
        write(mounts.join("memory.max"), "3000\n");
        assert_eq!(group(&membership, &mounts), Some(3000));
    }

    #[test]
    fn version_1_in_a_container_that_sees_only_its_own_group() {
        let dir = tempfile::tempdir().unwrap();
        let (membership, mounts) = (dir.path().join("cgroup"), dir.path().join("fs"));
        write(membership.clone(), "12:cpu,cpuacct:/docker/0123\n9:memory:/docker/0123\n0::/docker/0123\n");
        write(mounts.join("memory/memory.limit_in_bytes"), "5000\n");
        write(mounts.join("cpu/memory.limit_in_bytes"), "7\n");
        assert_eq!(group(&membership, &mounts), Some(5000));
        write(mounts.join("memory/docker/0123/memory.limit_in_bytes"), "9223372036854771712\n");
        assert_eq!(group(&membership, &mounts), Some(5000));
    }

    #[test]
    fn a_path_that_leads_elsewhere_stays_below_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (membership, mounts) = (dir.path().join("cgroup"), dir.path().join("fs"));
        write(membership.clone(), "0::/../../outside\nnonsense\n0:\n");
        write(dir.path().join("outside/memory.max"), "7\n");
        write(mounts.join("outside/memory.max"), "8\n");
        assert_eq!(group(&membership, &mounts), Some(8));
    }
}
