//! The user that a container runs as, who must be able to write to the workspace.

use std::{
    fs, io,
    io::Read,
    os::unix::fs::{PermissionsExt, lchown},
    path::Path,
};

use bollard::{Docker, query_parameters::DownloadFromContainerOptions};
use futures::StreamExt;

/// A file of users that is larger is not read.
const MAX_PASSWD_BYTES: usize = 1 << 20;

/// User and group, as the kernel knows them.
pub(super) type Ids = (u32, u32);

/// Finds what `name`, `uid`, `name:group` or `uid:gid` means in a container's image. Nothing: its root.
pub(super) async fn resolve(docker: &Docker, container: &str, user: &str) -> Option<Ids> {
    let (user, group) =
        user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    if user.is_empty() {
        return None;
    }
    let passwd = file(docker, container, "/etc/passwd").await;
    let mut ids = find(&passwd, user, 3).map(|fields| (fields[2], fields[3]));
    if ids.is_none() {
        ids = user.parse().ok().map(|uid| (uid, 0));
    }
    let (uid, mut gid) = ids?;
    if let Some(group) = group {
        let groups = file(docker, container, "/etc/group").await;
        gid = find(&groups, group, 2).map(|fields| fields[2]).or_else(|| group.parse().ok())?;
    }
    (uid != 0).then_some((uid, gid))
}

/// The numbers of an entry by its name or by its number; fields that are none are zero.
fn find(text: &str, wanted: &str, last: usize) -> Option<Vec<u32>> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
        let fits = fields.len() > last && (fields[0] == wanted || fields[2] == wanted);
        fits.then(|| fields.iter().map(|field| field.parse().unwrap_or(0)).collect())
    })
}

/// A small file of a container, or nothing.
async fn file(docker: &Docker, container: &str, path: &str) -> String {
    let options = DownloadFromContainerOptions { path: path.to_owned() };
    let mut stream = docker.download_from_container(container, Some(options));
    let mut archive = vec![];
    while let Some(Ok(piece)) = stream.next().await {
        archive.extend_from_slice(&piece);
        if archive.len() > MAX_PASSWD_BYTES {
            return String::new();
        }
    }
    let mut text = String::new();
    if let Ok(entries) = tar::Archive::new(archive.as_slice()).entries() {
        for mut entry in entries.flatten() {
            let _not_text = entry.read_to_string(&mut text);
        }
    }
    text
}

/// Lets the user write to a folder and all that is in it.
pub(super) fn hand_over(folder: &Path, ids: Option<Ids>) -> io::Result<()> {
    let Some((uid, gid)) = ids else { return Ok(()) };
    if rustix::process::geteuid().is_root() {
        return give(folder, uid, gid);
    }
    // Only root can give files away. What is in the folder stays ours, but new files can be made; the folder around it is
    // closed to others.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
}

fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    lchown(path, Some(uid), Some(gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbuild:x:1000:100::/:/bin/sh\nbad\n";
        assert_eq!(find(passwd, "build", 3).unwrap()[2..4], [1000, 100]);
        assert_eq!(find(passwd, "1000", 3).unwrap()[3], 100);
        assert!(find(passwd, "bad", 3).is_none());
        assert!(find(passwd, "nobody", 3).is_none());
    }
}
