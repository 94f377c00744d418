use std::{path::Path, process::Command};

use super::{host::hierarchies, *};

const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 /docker/abc /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
34 25 0:30 / /proc rw - proc proc rw
";
const OWN: &str = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:pids:/docker/abc/x\n0::/user.slice\n";

#[test]
fn own_place_is_found_in_each_hierarchy() {
    let found = hierarchies(HYBRID, OWN);
    let homes: Vec<_> = found.iter().map(|hierarchy| hierarchy.home.as_path()).collect();
    assert_eq!(
        homes,
        [
            Path::new("/sys/fs/cgroup/memory/a/b"),
            Path::new("/sys/fs/cgroup/cpu,cpuacct"),
            Path::new("/sys/fs/cgroup/pids/x"),
            Path::new("/sys/fs/cgroup/unified/user.slice"),
        ]
    );
    assert_eq!(found[1].controllers.iter().collect::<Vec<_>>(), ["cpu", "cpuacct"]);
    assert_eq!(found[3].version, Version::V2);
}

#[test]
fn without_groups_there_is_no_limit_to_offer() {
    let host = Host::detect(Want::ProcessGroup);
    assert_eq!(host.mode(), "process group");
    assert!(host.features().is_empty());
    let limits = Limits { memory_bytes: 1 << 20, ..Limits::default() };
    assert_eq!(host.contain("job", limits), Containment::ProcessGroup);
}

#[test]
fn offered_limits_are_set_and_groups_removed() {
    let host = Host::detect(Want::Cgroup);
    let tiny = Limits { cpu_millis: 1, ..Limits::default() };
    let tiny = host.contain(&format!("tiny-{}", std::process::id()), tiny);
    tiny.prepare().unwrap();
    tiny.remove();
    let limits = Limits { cpu_millis: 1_500, memory_bytes: 64 << 20, pids: 20 };
    let containment = host.contain(&format!("test-{}", std::process::id()), limits);
    let Containment::Groups { groups } = &containment else {
        println!("skipped: control groups are not writable here");
        return;
    };
    containment.prepare().unwrap();
    let offered = host.features().len();
    let written: usize = groups.iter().map(|group| group.settings.len()).sum();
    assert!(written >= offered, "{groups:?}");
    for group in groups {
        for setting in group.settings.iter().filter(|setting| !setting.optional) {
            let text = std::fs::read_to_string(group.path.join(&setting.file)).unwrap();
            assert_eq!(text.trim(), setting.value, "{}", setting.file);
        }
    }
    assert!(containment.kill(), "an empty group is dead");
    containment.remove();
    assert!(groups.iter().all(|group| !group.path.exists()));
}

#[test]
fn a_group_kills_what_forks_while_it_is_listed() {
    let homes = [
        (Version::V1, "/sys/fs/cgroup/freezer"),
        (Version::V2, "/sys/fs/cgroup/unified"),
        (Version::V2, "/sys/fs/cgroup"),
    ];
    let group = |(version, home): (Version, &str)| {
        let home = Path::new(home).to_owned();
        let path = home.join(format!("kiln-test-{}", std::process::id()));
        let group = Group { version, path, home, settings: vec![] };
        // Where version 1 is mounted, the folder of all hierarchies is no group itself.
        (group.home.join("cgroup.procs").exists() && group.create().is_ok()).then_some(group)
    };
    let groups: Vec<_> = homes.into_iter().filter_map(group).collect();
    if groups.is_empty() {
        println!("skipped: control groups are not writable here");
    }
    groups.iter().for_each(kills_what_forks);
}

fn kills_what_forks(group: &Group) {
    let fork = "cd / && while :; do sleep 100 & done";
    let enter = format!("echo $$ >{}/cgroup.procs && {fork}", group.path.display());
    let mut child = Command::new("sh").args(["-c", &enter]).spawn().unwrap();
    let containment = Containment::Groups { groups: vec![group.clone()] };
    let procs = || std::fs::read_to_string(group.path.join("cgroup.procs")).unwrap();
    while procs().lines().count() < 5 {
        std::thread::yield_now();
    }
    assert!(containment.kill());
    child.wait().unwrap();
    assert_eq!(procs(), "");
    containment.remove();
    assert!(!group.path.exists());
}
