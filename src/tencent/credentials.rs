//! The key pair that signs requests: from the environment or a file, never from an argument.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::secret;

/// The environment variables, as Tencent Cloud's own tools call them.
const SECRET_ID: &str = "TENCENTCLOUD_SECRET_ID";
const SECRET_KEY: &str = "TENCENTCLOUD_SECRET_KEY";
const TOKEN: &str = "TENCENTCLOUD_TOKEN";
const FILE: &str = "TENCENTCLOUD_CREDENTIALS_FILE";

/// The largest credentials file that is read: a token has a few KiB at most.
const FILE_MAX: u64 = 64 * 1024;

/// A secret ID with its secret key, and the token of temporary credentials.
#[derive(Clone)]
pub struct Credentials {
    secret_id: String,
    secret_key: String,
    token: Option<String>,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Neither the environment nor a file has them.
    #[error(
        "no credentials of Tencent Cloud: set {SECRET_ID} and {SECRET_KEY} (and {TOKEN} with \
         temporary ones), or name a file with --credentials"
    )]
    Missing,
    /// One of the two variables is not set.
    #[error("{present} is set and {missing} is not: set both")]
    Half {
        /// The variable that is set.
        present: &'static str,
        /// The variable that is not.
        missing: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read the credentials file {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// The file has another form.
    #[error(
        "the credentials file {} has neither the JSON members secretId and secretKey nor the lines \
         secret_id = … and secret_key = … in a section [default]",
        .0.display()
    )]
    Form(PathBuf),
    /// A value that cannot be sent in a header.
    #[error(
        "the {0} of the credentials is empty or has blanks or characters outside ASCII; copy it again"
    )]
    Value(&'static str),
}

impl Credentials {
    /// Checks and takes them; [`secret::redact`] masks them from then on.
    ///
    /// # Errors
    /// [`CredentialsError::Value`]
    pub fn new(
        secret_id: &str,
        secret_key: &str,
        token: Option<&str>,
    ) -> Result<Self, CredentialsError> {
        for (name, value) in
            [("secret ID", Some(secret_id)), ("secret key", Some(secret_key)), ("token", token)]
        {
            let Some(value) = value.map(str::trim) else { continue };
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(CredentialsError::Value(name));
            }
            secret::remember(value);
        }
        Ok(Self {
            secret_id: secret_id.trim().to_owned(),
            secret_key: secret_key.trim().to_owned(),
            token: token.map(|token| token.trim().to_owned()),
        })
    }

    /// From `file`, or, without one, from the file or the key pair that the environment names, of
    /// which `variable` returns a value.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub fn find(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CredentialsError> {
        if let Some(path) = Self::file(file, &variable) {
            return Self::read(&path);
        }
        // An empty variable counts as none, as in Tencent Cloud's own tools.
        let variable = |name| variable(name).filter(|value| !value.trim().is_empty());
        match (variable(SECRET_ID), variable(SECRET_KEY)) {
            (Some(id), Some(key)) => Self::new(&id, &key, variable(TOKEN).as_deref()),
            (None, None) => Err(CredentialsError::Missing),
            (Some(_), None) => {
                Err(CredentialsError::Half { present: SECRET_ID, missing: SECRET_KEY })
            }
            (None, Some(_)) => {
                Err(CredentialsError::Half { present: SECRET_KEY, missing: SECRET_ID })
            }
        }
    }

    /// The file that [`Credentials::find`] reads, if it reads one.
    pub fn file(file: Option<&Path>, variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let named = || variable(FILE).filter(|path| !path.trim().is_empty()).map(PathBuf::from);
        file.map(Path::to_owned).or_else(named)
    }

    /// From a file, in the JSON form of `tccli` or the INI form of the SDKs.
    fn read(path: &Path) -> Result<Self, CredentialsError> {
        let unreadable = |cause| CredentialsError::Unreadable { path: path.to_owned(), cause };
        if fs::metadata(path).map_err(unreadable)?.len() > FILE_MAX {
            return Err(CredentialsError::Form(path.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let text = text.trim_start_matches('\u{feff}');
        let form = || CredentialsError::Form(path.to_owned());
        let written = Written::of_json(text).or_else(|| Written::of_ini(text)).ok_or_else(form)?;
        Self::new(
            &written.secret_id,
            &written.secret_key,
            written.token.as_deref().filter(|token| !token.trim().is_empty()),
        )
    }

    pub(super) fn secret_id(&self) -> &str {
        &self.secret_id
    }

    pub(super) fn secret_key(&self) -> &str {
        &self.secret_key
    }

    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    secret_id: String,
    secret_key: String,
    token: Option<String>,
}

impl Written {
    fn of_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The section `[default]` of an INI file; lines before any section count as of it.
    fn of_ini(text: &str) -> Option<Self> {
        let mut is_default = true;
        let (mut secret_id, mut secret_key, mut token) = (None, None, None);
        for line in text.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                is_default = name.trim_end_matches(']').trim() == "default";
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| is_default) else { continue };
            let value = Some(value.trim().trim_matches('"').to_owned());
            match name.trim() {
                "secret_id" => secret_id = value,
                "secret_key" => secret_key = value,
                "token" => token = value,
                _ => {}
            }
        }
        Some(Self { secret_id: secret_id?, secret_key: secret_key?, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Result<Credentials, CredentialsError> {
        Credentials::find(None, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn parts(credentials: &Credentials) -> (&str, &str, Option<&str>) {
        (credentials.secret_id(), credentials.secret_key(), credentials.token())
    }

    #[test]
    fn reads_the_variables_of_tencents_own_tools() {
        let both = [(SECRET_ID, "AKIDone"), (SECRET_KEY, " key-one\n")];
        assert_eq!(parts(&found(&both).unwrap()), ("AKIDone", "key-one", None));
        let three = [(SECRET_ID, "AKIDone"), (SECRET_KEY, "key-one"), (TOKEN, "token-one")];
        assert_eq!(parts(&found(&three).unwrap()), ("AKIDone", "key-one", Some("token-one")));
        assert!(matches!(found(&[]), Err(CredentialsError::Missing)));
        assert!(matches!(found(&[(SECRET_ID, " "), (FILE, "")]), Err(CredentialsError::Missing)));
        let empty_file = [both[0], both[1], (FILE, "")];
        assert_eq!(parts(&found(&empty_file).unwrap()), ("AKIDone", "key-one", None));
        let unreadable = [both[0], both[1], (FILE, "/nowhere")];
        assert!(matches!(found(&unreadable), Err(CredentialsError::Unreadable { .. })));
        assert!(matches!(found(&both[..1]), Err(CredentialsError::Half { .. })));
        assert!(matches!(found(&both[1..]), Err(CredentialsError::Half { .. })));
        let wrong = [(SECRET_ID, "AKIDone"), (SECRET_KEY, "key one")];
        assert!(matches!(found(&wrong), Err(CredentialsError::Value("secret key"))));
    }

    #[test]
    fn reads_the_files_of_tencents_own_tools_and_rejects_other_forms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let json = r#"{"secretId": "AKIDtwo", "secretKey": "key-two", "token": "token-two"}"#;
        let ini = "[other]\nsecret_id = no\nsecret_key = no\n[default]\n# comment = 1\n\
                   secret_id = AKIDtwo\nsecret_key=\"key-two\"\n";
        for (text, token) in [(json, Some("token-two")), (ini, None)] {
            fs::write(&path, text).unwrap();
            let read = Credentials::find(Some(&path), |_| None).unwrap();
            assert_eq!(parts(&read), ("AKIDtwo", "key-two", token));
        }
        for text in ["", "{}", "AKIDtwo key-two", "[default]\nsecret_id = x"] {
            fs::write(&path, text).unwrap();
            let error = Credentials::find(Some(&path), |_| None).unwrap_err();
            assert!(matches!(error, CredentialsError::Form(_)), "{text:?}: {error}");
        }
        let error = Credentials::find(Some(dir.path()), |_| None).unwrap_err();
        assert!(matches!(error, CredentialsError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn no_text_shows_a_credential() {
        let credentials =
            Credentials::new("AKIDshown-never", "key-shown-never", Some("token-shown-never"));
        assert_eq!(format!("{credentials:?}"), "Ok(Credentials(..))");
        let text = "AKIDshown-never key-shown-never token-shown-never";
        assert_eq!(secret::redact(text), "(hidden) (hidden) (hidden)");
    }
}
