//! What this machine lets the agent do with control groups and namespaces. Found by trying, not by version.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use super::{Containment, Group, Limits, Version, group::Setting};

pub(super) const UNSHARE: [&str; 5] =
    ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// The group below the agent's own in which those of its jobs are.
const JOBS: &str = "kiln-jobs";
/// The group into which the agent goes where its own must be empty to pass controllers on.
const HOME: &str = "kiln-agent";
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no less.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// The strongest that works here.
    #[default]
    Auto,
    Cgroup,
    PidNamespace,
    ProcessGroup,
}

/// A mounted hierarchy, and the agent's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) controllers: BTreeSet<String>,
    pub(super) home: PathBuf,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    hierarchies: Vec<Hierarchy>,
    fallback: Containment,
}

impl Host {
    /// Tries what works here; before the first job is started. Blocks for some milliseconds.
    pub fn detect(want: Want) -> Self {
        let hierarchies = match want {
            Want::Auto | Want::Cgroup => own().to_vec(),
            Want::PidNamespace | Want::ProcessGroup => vec![],
        };
        let namespace = hierarchies.is_empty()
            && matches!(want, Want::Auto | Want::PidNamespace)
            && can_unshare();
        let fallback =
            if namespace { Containment::PidNamespace } else { Containment::ProcessGroup };
        Self { hierarchies, fallback }
    }

    /// It is what the configuration asks for.
    pub fn is(&self, want: Want) -> bool {
        match want {
            Want::Auto => true,
            Want::Cgroup => !self.hierarchies.is_empty(),
            Want::PidNamespace => self.fallback == Containment::PidNamespace,
            Want::ProcessGroup => self.fallback == Containment::ProcessGroup,
        }
    }

    /// The word for the offer.
    pub fn mode(&self) -> &'static str {
        match (self.tracker().map(|hierarchy| hierarchy.version), &self.fallback) {
            (Some(Version::V2), _) if self.hierarchies.len() > 1 => "cgroup v2 with v1 limits",
            (Some(Version::V2), _) => "cgroup v2",
            (Some(Version::V1), _) => "cgroup v1",
            (None, Containment::PidNamespace) => "pid namespace",
            (None, _) => "process group",
        }
    }

    /// Limits that are really enforced.
    pub fn features(&self) -> BTreeSet<String> {
        [("cpu", "cpu-limit"), ("memory", "memory-limit"), ("pids", "pids-limit")]
            .into_iter()
            .filter(|(controller, _)| self.with(controller).is_some())
            .map(|(_, feature)| feature.to_owned())
            .collect()
    }

    /// The containment of one job.
    pub fn contain(&self, name: &str, limits: Limits) -> Containment {
        let Some(tracker) = self.tracker() else { return self.fallback.clone() };
        let mut groups: BTreeMap<PathBuf, Group> = BTreeMap::new();
        let first = tracker.group(name);
        for (controller, wanted) in [
            ("cpu", u64::from(limits.cpu_millis)),
            ("memory", limits.memory_bytes),
            ("pids", u64::from(limits.pids)),
        ] {
            if let Some(hierarchy) = self.with(controller).filter(|_| wanted > 0) {
                let group = hierarchy.group(name);
                let group = groups.entry(group.path.clone()).or_insert(group);
                group.settings.extend(settings(hierarchy.version, controller, wanted));
            }
        }
        let first = groups.remove(&first.path).unwrap_or(first);
        let groups = std::iter::once(first).chain(groups.into_values()).collect();
        Containment::Groups { groups }
    }

    /// Kills and removes all groups whose name begins so, but those that are to stay.
    pub fn sweep(&self, prefix: &str, keep: &[String]) {
        for hierarchy in &self.hierarchies {
            let entries = fs::read_dir(hierarchy.jobs()).into_iter().flatten().flatten();
            for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
                if name.starts_with(prefix) && !keep.contains(&name) {
                    let group = hierarchy.group(&name);
                    group.kill();
                    group.remove();
                }
            }
        }
    }

    /// The hierarchy whose groups are killed: a freezer, which is entered at once; else the one where a single write
    /// kills; else any.
    fn tracker(&self) -> Option<&Hierarchy> {
        let v2 = || self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
        self.with("freezer").or_else(v2).or_else(|| self.hierarchies.first())
    }

    fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(controller))
    }
}

impl Hierarchy {
    fn jobs(&self) -> PathBuf {
        let base = self.home.parent().filter(|_| self.home.ends_with(HOME));
        base.unwrap_or(&self.home).join(JOBS)
    }

    fn group(&self, name: &str) -> Group {
        Group {
            version: self.version,
            path: self.jobs().join(name),
            home: self.home.clone(),
            settings: vec![],
        }
    }
}

fn settings(version: Version, controller: &str, wanted: u64) -> Vec<Setting> {
    let must =
        |file: &str, value: String| Setting { file: file.to_owned(), value, optional: false };
    let may = |file: &str, value: String| Setting { optional: true, ..must(file, value) };
    let quota = (wanted * CPU_PERIOD_US / 1_000).max(CPU_QUOTA_MIN_US);
    match (version, controller) {
        (Version::V2, "cpu") => vec![must("cpu.max", format!("{quota} {CPU_PERIOD_US}"))],
        (Version::V1, "cpu") => vec![
            must("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
            must("cpu.cfs_quota_us", quota.to_string()),
        ],
        // Swap counts: a job must not get more by filling it.
        (Version::V2, "memory") => {
            vec![must("memory.max", wanted.to_string()), may("memory.swap.max", "0".to_owned())]
        }
        (Version::V1, "memory") => vec![
            must("memory.limit_in_bytes", wanted.to_string()),
            may("memory.memsw.limit_in_bytes", wanted.to_string()),
        ],
        (_, "pids") => vec![must("pids.max", wanted.to_string())],
        _ => vec![],
    }
}

/// What works for this process. Trying it moves the process to and fro, so that it is done once: a second try at the same
/// time would take a group of the first for its home.
fn own() -> &'static [Hierarchy] {
    static OWN: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    OWN.get_or_init(|| {
        usable(hierarchies(
            &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        ))
    })
}

/// Reads which hierarchies are mounted and where this process is in them.
pub(super) fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(|line| hierarchy(line, own)).collect()
}

fn hierarchy(line: &str, own: &str) -> Option<Hierarchy> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, Path::new(mount.next()?));
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options: BTreeSet<String> = kind.nth(1)?.split(',').map(str::to_owned).collect();
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match version {
            Version::V2 => names.is_empty(),
            Version::V1 => !names.is_empty() && names.split(',').all(|name| options.contains(name)),
        };
        fits.then_some((names, path))
    })?;
    let (names, path) = path;
    // In a container the mount may show only a part of the hierarchy, and not ours.
    let relative = Path::new(path).strip_prefix(root).unwrap_or_else(|_| Path::new("")).to_owned();
    let home =
        if relative.as_os_str().is_empty() { point.to_owned() } else { point.join(relative) };
    let controllers = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Some(Hierarchy { version, controllers, home })
}

/// Those in which the agent may make groups, with the controllers that really work there.
fn usable(found: Vec<Hierarchy>) -> Vec<Hierarchy> {
    let useful = ["cpu", "memory", "pids", "freezer"];
    found
        .into_iter()
        .filter(|hierarchy| {
            hierarchy.version == Version::V2
                || useful.iter().any(|name| hierarchy.controllers.contains(*name))
        })
        .filter_map(|hierarchy| match hierarchy.version {
            Version::V1 => try_out(hierarchy),
            Version::V2 => try_out(pass_controllers_on(hierarchy)),
        })
        .collect()
}

fn try_out(hierarchy: Hierarchy) -> Option<Hierarchy> {
    let jobs = hierarchy.jobs();
    fs::create_dir_all(&jobs).ok()?;
    let trial = jobs.join(format!("trial-{}", std::process::id()));
    fs::create_dir_all(&trial).ok()?;
    // Writable means that a process can be put in: delegation may end above.
    let enters = fs::write(trial.join("cgroup.procs"), std::process::id().to_string())
        .and_then(|()| {
            fs::write(hierarchy.home.join("cgroup.procs"), std::process::id().to_string())
        })
        .is_ok();
    let controllers = match hierarchy.version {
        Version::V1 => hierarchy.controllers.clone(),
        Version::V2 => words(&trial.join("cgroup.controllers")),
    };
    let _busy = fs::remove_dir(&trial);
    enters.then_some(Hierarchy { controllers, ..hierarchy })
}

/// A group of version 2 passes controllers on only while it has no process itself, so the agent steps aside.
fn pass_controllers_on(mut hierarchy: Hierarchy) -> Hierarchy {
    let base = match hierarchy.home.parent().filter(|_| hierarchy.home.ends_with(HOME)) {
        Some(parent) => parent.to_owned(),
        None => hierarchy.home.clone(),
    };
    let wanted: Vec<String> = words(&base.join("cgroup.controllers"))
        .into_iter()
        .filter(|name| ["cpu", "memory", "pids"].contains(&name.as_str()))
        .map(|name| format!("+{name}"))
        .collect();
    if wanted.is_empty() {
        return hierarchy;
    }
    let own = std::process::id().to_string();
    let alone = words(&base.join("cgroup.procs")).iter().all(|pid| *pid == own);
    let is_root = !base.join("cgroup.type").exists();
    if alone && !is_root && base == hierarchy.home {
        let aside = base.join(HOME);
        let moved = fs::create_dir_all(&aside)
            .and_then(|()| fs::write(aside.join("cgroup.procs"), &own))
            .is_ok();
        if moved {
            hierarchy.home = aside;
        }
    }
    let jobs = base.join(JOBS);
    let _not_ours = fs::create_dir_all(&jobs);
    for dir in [&base, &jobs] {
        let _not_passed_on = fs::write(dir.join("cgroup.subtree_control"), wanted.join(" "));
    }
    hierarchy
}

fn words(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn can_unshare() -> bool {
    Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
