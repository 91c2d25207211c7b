//! `[access]`, `[tls]` and the admin listener's token, as written in the configuration.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use toml::Value;

use super::ConfigError;
use super::file::or_empty;
use crate::intake::{Access, Networks, Tls};
use crate::secret::Secret;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAccess {
    allow: Vec<String>,
    trusted_proxies: Vec<String>,
    proxy_protocol: bool,
    #[serde(deserialize_with = "word", serialize_with = "or_empty")]
    secret: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTls {
    #[serde(serialize_with = "or_empty")]
    certificate: Option<PathBuf>,
    #[serde(serialize_with = "or_empty")]
    private_key: Option<PathBuf>,
}

/// A secret. An error does not repeat a value of the wrong type, because that may be the secret.
pub(super) fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(word) => Ok(Some(word)),
        _ => Err(D::Error::custom("must be text in quotes")),
    }
}

/// The secret `word` of `key`.
pub(super) fn secret(key: &'static str, word: Option<&str>) -> Result<Option<Secret>, ConfigError> {
    let empty = || ConfigError::value(key, "is empty; remove it, or set a long random text");
    word.map(|word| Secret::new(word).ok_or_else(empty)).transpose()
}

impl RawAccess {
    pub(super) fn check(&self, tls: &RawTls) -> Result<Access, ConfigError> {
        let networks = |key, texts: &[String]| {
            Networks::parse(texts.iter().map(String::as_str)).map_err(|text| {
                ConfigError::value(
                    key,
                    format!("{text:?} is neither a network such as \"10.0.0.0/8\" nor an address"),
                )
            })
        };
        let allow = networks("access.allow", &self.allow)?;
        let trusted_proxies = networks("access.trusted_proxies", &self.trusted_proxies)?;
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            return Err(ConfigError::value(
                "access.proxy_protocol",
                "applies only to access.trusted_proxies, which is empty",
            ));
        }
        Ok(Access {
            allow,
            trusted_proxies,
            proxy_protocol: self.proxy_protocol,
            secret: secret("access.secret", self.secret.as_deref())?,
            tls: tls.load()?,
        })
    }
}

impl RawTls {
    /// The files that are read.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.certificate.clone().into_iter().chain(self.private_key.clone())
    }

    fn load(&self) -> Result<Option<Tls>, ConfigError> {
        let lacks = |key, other| {
            let problem = format!("is not set, and {other} alone is of no use");
            Err(ConfigError::value(key, problem))
        };
        match (&self.certificate, &self.private_key) {
            (None, None) => Ok(None),
            (Some(_), None) => lacks("tls.private_key", "tls.certificate"),
            (None, Some(_)) => lacks("tls.certificate", "tls.private_key"),
            (Some(certificate), Some(key)) => Ok(Some(Tls::load(certificate, key)?)),
        }
    }
}
