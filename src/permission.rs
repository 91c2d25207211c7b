//! Errors at files, directories and addresses, and what to do when this process may not use one.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A failed operation on a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {cause}{}", advice(path, cause), path = path.display())]
pub struct FileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl FileError {
    /// Makes the error of what was attempted at `path` from its cause.
    pub(crate) fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |cause| Self { what, path: path.to_owned(), cause }
    }
}

/// The end of a message about `cause`, an error at `path`: who this process is, whose the path is,
/// and what to do. Empty for errors that have nothing to do with permissions.
#[must_use]
pub(crate) fn advice(path: &Path, cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => denied(path),
        io::ErrorKind::ReadOnlyFilesystem => {
            "; the file system is read-only: mount a volume or directory there that can be written, or, under \
             systemd, allow it with ReadWritePaths="
                .to_owned()
        }
        _ => String::new(),
    }
}

/// The end of a message about `cause`, an error of listening on an address.
#[must_use]
pub(crate) fn listen_advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "; for a port below 1024, let systemd open it (ListenStream= in livebridge.socket) or give \
             livebridge CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this machine does not have the address: name one that it has, or 0.0.0.0 for all of them"
        }
        _ => "",
    }
}

fn denied(path: &Path) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let mut text = format!("; livebridge runs as uid {uid}, gid {gid}");
    // The first directory on the way that keeps this user out, or else the path itself or the last
    // directory that exists.
    let mut found = None;
    for path in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match fs::metadata(path) {
            Ok(meta) => found = Some((path, meta)),
            Err(_) => break,
        }
    }
    if let Some((path, meta)) = found {
        let (owner, group, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        let path = path.display();
        let _ = write!(
            text,
            ", and {path} belongs to uid {owner}, gid {group} with mode {mode:04o}: give livebridge access \
             (chown -R {uid}:{gid} {path}; for a directory mounted into a container, on the host), or \
             run livebridge as its owner"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_errors_get_no_advice() {
        let cause = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(advice(Path::new("/nowhere"), &cause), "");
    }

    #[test]
    fn a_missing_file_is_explained_by_the_directory_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        let text = advice(&dir.path().join("log/segments"), &cause);
        let uid = rustix::process::geteuid().as_raw();
        assert!(text.contains(&format!("runs as uid {uid}, ")), "{text}");
        assert!(
            text.contains(&format!("{} belongs to uid {uid}, ", dir.path().display())),
            "{text}"
        );
        assert!(text.contains("with mode 0"), "{text}");
    }

    #[test]
    fn a_port_without_the_right_is_explained() {
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(listen_advice(&cause).contains("below 1024"));
    }

    #[test]
    fn a_read_only_file_system_is_named() {
        let cause = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        assert!(advice(Path::new("/"), &cause).contains("mount a volume"));
    }
}
