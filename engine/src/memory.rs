//! How much memory there is for a model: what the system has, within what this process may use of it.

use std::path::{Path, PathBuf};

use candle_core::Device;

/// Bytes that this process can have without swapping and without being ended for it, where the system says so.
pub(crate) fn available() -> Option<u64> {
    let system = read("/proc/meminfo".as_ref()).and_then(|text| of_meminfo(&text));
    let groups = read("/proc/self/cgroup".as_ref()).unwrap_or_default();
    let limits = folders(&groups).into_iter().filter_map(|folder| of_group(&folder, &|name| read(&folder.join(name))));
    limits.chain(system).min()
}

/// The same for the memory that a device computes in.
pub(crate) fn available_on(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => available(),
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => gpu.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free as u64),
        _ => None,
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The folders of the memory groups that this process is in, from its own to the outermost: each may limit it. In a container
/// the group's path may be the host's, and its files lie at the root.
fn folders(groups: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            several if several.split(',').any(|controller| controller == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        let inside = group.trim_start_matches('/');
        let plain = !Path::new(inside).components().any(|part| part == std::path::Component::ParentDir);
        folders.extend(Path::new(inside).ancestors().filter(|_| plain).map(|part| root.join(part)));
        folders.push(root.to_path_buf());
    }
    folders.dedup();
    folders
}

/// What a group's limit leaves; files that it has in memory are given up when memory is short.
fn of_group(folder: &Path, read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let old = folder.starts_with("/sys/fs/cgroup/memory");
    let [limit, used, files] = match old {
        false => ["memory.max", "memory.current", "inactive_file "],
        true => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
    };
    // A group without a limit says `max`, or a number that no machine has.
    let limit = number(limit).filter(|limit| *limit < 1 << 60)?;
    let stat = read("memory.stat").unwrap_or_default();
    let active = files.replace("inactive", "active");
    let of = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let used = number(used)?.saturating_sub(of(files)).saturating_sub(of(&active));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_figure_is_read() {
        assert_eq!(of_meminfo("MemTotal:  9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(of_meminfo("MemAvailable: many kB"), None);
        assert_ne!(available(), Some(0));
    }

    #[test]
    fn a_group_limits_by_what_it_has_not_given_to_files() {
        let of = |folder: &str, files: &[(&str, &str)]| {
            let read = |name: &str| files.iter().find(|(of, _)| *of == name).map(|(_, text)| (*text).to_owned());
            of_group(folder.as_ref(), &read)
        };
        let stat = ("memory.stat", "anon 5\nactive_file 10\ninactive_file 20\n");
        let group = |limit| of("/sys/fs/cgroup/a", &[("memory.max", limit), ("memory.current", "40\n"), stat]);
        assert_eq!((group("100\n"), group("5\n"), group("max\n")), (Some(90), Some(0), None));
        let old = [("memory.limit_in_bytes", "100"), ("memory.usage_in_bytes", "40"), ("memory.stat", "total_inactive_file 20")];
        assert_eq!(of("/sys/fs/cgroup/memory/a", &old), Some(80));
        assert_eq!(of("/sys/fs/cgroup", &[]), None);
    }

    #[test]
    fn a_process_is_in_its_group_and_in_those_around_it() {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(folders("0::/a/b\n"), paths(&["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]));
        assert_eq!(folders("3:cpu,memory:/\n2:pids:/x\n"), paths(&["/sys/fs/cgroup/memory"]));
        assert_eq!(folders("0::/../../etc\nnonsense\n"), paths(&["/sys/fs/cgroup"]));
    }
}
