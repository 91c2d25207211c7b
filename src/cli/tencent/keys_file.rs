//! Adds keys to `callback.keys_file` and removes them; the other lines stay as they are.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::callback::CallbackKey;
use crate::config::Config;
use crate::event::Timestamp;
use crate::permission;
use crate::secret;
use uuid::Uuid;

use crate::cli::CliError;

/// The path of the file, with symbolic links resolved.
#[derive(Debug)]
pub(super) struct KeysFile(PathBuf);

impl KeysFile {
    /// The file of the configuration, if it names one.
    pub(super) fn of(config: &Config) -> Result<Self, CliError> {
        let files = config.settings.secret_files();
        let found = files.into_iter().find(|(_, key)| key == "callback.keys_file");
        let (path, _) = found.ok_or_else(|| {
            CliError::Usage(
                "callback.keys_file is not set: a new key is written to that file; create an empty \
                 file that livebridge may read, and set callback.keys_file to it"
                    .to_owned(),
            )
        })?;
        // Replacing a symbolic link would leave the file behind it as it is.
        Ok(Self(fs::canonicalize(&path).unwrap_or(path)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file beside it: its own with `ending` appended.
    pub(super) fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.0.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    /// Whether a line has this name before its key.
    pub(super) fn has(&self, name: &str) -> Result<bool, CliError> {
        let text = self.read()?;
        Ok(text.lines().any(|line| line_name(line) == Some(name)))
    }

    /// Adds a line.
    pub(super) fn add(&self, key: &NewKey) -> Result<(), CliError> {
        let mut text = self.read()?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let _ = writeln!(text, "{} {}", key.name, key.secret);
        self.replace(&text)
    }

    /// Removes the line with this name, if there is one.
    pub(super) fn remove(&self, name: &str) -> Result<(), CliError> {
        let text = self.read()?;
        let kept = text.split_inclusive('\n').filter(|line| line_name(line) != Some(name));
        self.replace(&kept.collect::<String>())
    }

    fn read(&self) -> Result<String, CliError> {
        fs::read_to_string(&self.0).map_err(|cause| self.error("read callback.keys_file", &cause))
    }

    /// Replaces the file in one step, so that livebridge never reads half of it; owner and mode
    /// stay.
    fn replace(&self, text: &str) -> Result<(), CliError> {
        write_beside(&self.0, text).map_err(|cause| self.error("write callback.keys_file", &cause))
    }

    fn error(&self, what: &'static str, cause: &io::Error) -> CliError {
        let (path, advice) = (self.0.display(), permission::advice(&self.0, cause));
        CliError::other(what)(io::Error::new(cause.kind(), format!("{path}: {cause}{advice}")))
    }
}

/// Writes a file beside `path`, with its owner and mode, and renames it to `path`.
fn write_beside(path: &Path, text: &str) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    let mut partial = path.to_owned().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || {
        let _ = fs::remove_file(&partial);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (meta.uid(), meta.gid()) {
            // Otherwise the user that runs livebridge could no longer read it.
            fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

/// The name on a line of the form `NAME KEY`.
fn line_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start_matches('\u{feff}').split_whitespace();
    let name = words.next()?;
    words.next().map(|_| name)
}

/// A name that contains the time, so that no other key had it: metrics keep a name until a restart.
pub(super) fn new_name() -> String {
    let digits = Timestamp::now().to_string().replace(['-', ':'], "").replace('T', "-");
    format!("tencent-{}", &digits[.."YYYYMMDD-hhmmss".len()])
}

/// A new key with its name.
pub(super) struct NewKey {
    pub(super) name: String,
    secret: String,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewKey({}, ..)", self.name)
    }
}

impl NewKey {
    /// 32 hexadecimal digits, the longest that Tencent Cloud's console accepts, with 122 random
    /// bits.
    pub(super) fn random(name: String) -> Self {
        let secret = Uuid::new_v4().simple().to_string();
        secret::remember(&secret);
        Self { name, secret }
    }

    pub(super) fn key(&self) -> Option<CallbackKey> {
        Some(CallbackKey::new(&self.secret)?.named(&self.name))
    }
}

/// Whether Tencent Cloud accepts it: up to 32 letters and digits.
pub(super) fn is_acceptable(key: &CallbackKey) -> bool {
    let text = key.reveal();
    text.len() <= 32 && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_and_removed_and_the_mode_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, "old old-key-0123456789\nnameless-key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = KeysFile(path.clone());
        let key = NewKey::random(new_name());
        assert!(is_acceptable(&key.key().unwrap()) && key.name.len() < key.secret.len());
        file.add(&key).unwrap();
        assert!(file.has("old").unwrap() && file.has(&key.name).unwrap());
        let line = format!("{} {}\n", key.name, key.secret);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("old old-key-0123456789\nnameless-key\n{line}"));
        file.remove("old").unwrap();
        file.remove("old").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("nameless-key\n{line}"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(!format!("{key:?}").contains(&key.secret));
    }
}
