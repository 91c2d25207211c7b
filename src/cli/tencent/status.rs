//! `livebridge tencent status`, and the same comparison for `livebridge check`.

use std::collections::BTreeMap;

use crate::callback::{CallbackKey, UnsignedPolicy};
use crate::config::Config;
use crate::tencent::{
    CallbackRule, CallbackTemplate, Client, PushDomain, TemplateUrl, TencentError, UrlKind,
};
use clap::Args;
use hyper::Uri;
use serde_json::{Value, json};

use super::setup::shown;
use super::{Account, Managed};
use crate::cli::{CliError, ConfigFile};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    account: Account,
    #[command(flatten)]
    managed: Managed,
    /// Only this push domain; may be given several times. Without it, all enabled ones.
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// The parts of a callback URL.
#[derive(Clone, Debug)]
pub(super) struct CallbackUrl {
    scheme: String,
    authority: String,
    path: String,
}

impl CallbackUrl {
    /// `None` if `url` is not http or https, or has a query.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.trim().parse().ok()?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if uri.query().is_some() || authority.host().is_empty() {
            return None;
        }
        Some(Self {
            scheme: scheme.to_owned(),
            authority: authority.to_string(),
            path: uri.path().to_owned(),
        })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn is_plain(&self) -> bool {
        self.scheme == "http"
    }

    /// The URL of a kind of event: its name is appended to the path.
    pub(super) fn of(&self, kind: UrlKind) -> String {
        let path = self.path.trim_end_matches('/');
        format!("{}://{}{path}/{}", self.scheme, self.authority, kind.name())
    }

    /// Without the path, which may contain a secret.
    fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// Whether the intake answers callbacks at `path`: at `http.path` and below.
pub(super) fn is_below(path: &str, http_path: &str) -> bool {
    let rest = path.strip_prefix(http_path.trim_end_matches('/'));
    path == http_path || rest.is_some_and(|rest| rest.starts_with('/'))
}

/// How a template's key is configured here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyMatch {
    /// The configured key of this name.
    Known(String),
    /// A key that the configuration does not have.
    Unknown,
    /// The template has none.
    None,
}

/// What is known about a template.
#[derive(Debug)]
struct TemplateReport {
    id: i64,
    name: String,
    is_managed: bool,
    key: KeyMatch,
    /// Kinds whose URL is that of this intake.
    here: Vec<UrlKind>,
    unset: Vec<UrlKind>,
    not_reported: Vec<UrlKind>,
    /// Kinds with another URL, and what is wrong with it.
    elsewhere: Vec<(UrlKind, String)>,
}

/// The comparison of an account with a configuration.
#[derive(Debug, Default)]
pub(in crate::cli) struct StatusReport {
    templates: BTreeMap<i64, TemplateReport>,
    /// Domain, app, template; without the latter two for a domain without a rule.
    domains: Vec<(String, Option<(String, i64)>)>,
    /// Reasons for which callbacks would not be accepted here.
    pub(in crate::cli) problems: Vec<String>,
    /// Findings that may be intended.
    pub(in crate::cli) notes: Vec<String>,
}

impl StatusReport {
    /// The number of rules.
    pub(in crate::cli) fn rules(&self) -> usize {
        self.domains.iter().filter(|(_, rule)| rule.is_some()).count()
    }
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load(options.config.config.as_deref())?;
    let client = options.account.connect()?;
    let report = examine(&config, &client, &options.domain, &options.managed.name)?;
    if options.json {
        print_out!("{:#}", report.to_json());
    } else {
        report.print();
    }
    if report.problems.is_empty() { Ok(()) } else { Err(CliError::Found) }
}

/// The default of the template's name, for `livebridge check`.
pub(in crate::cli) const DEFAULT_NAME: &str = "livebridge";

/// Compares the account with the configuration.
pub(in crate::cli) fn examine(
    config: &Config,
    client: &Client,
    wanted: &[String],
    managed: &str,
) -> Result<StatusReport, TencentError> {
    let managed = Managed { name: managed.to_owned() };
    let (templates, rules, domains) =
        (client.templates()?, client.rules()?, client.push_domains()?);
    let mut report = StatusReport::default();
    for template in &templates {
        let described = describe(config, template, managed.created(template));
        report.templates.insert(template.template_id, described);
    }
    for domain in wanted {
        if !domains.iter().any(|known| known.name == *domain) {
            report.problems.push(format!("the account has no push domain {domain}"));
        }
    }
    let is_selected = |domain: &&PushDomain| {
        if wanted.is_empty() { domain.is_enabled() } else { wanted.contains(&domain.name) }
    };
    for domain in domains.iter().filter(is_selected) {
        report.add_domain(config, domain, &rules);
    }
    if domains.is_empty() {
        report.problems.push("the account has no push domain".to_owned());
    }
    Ok(report)
}

fn describe(config: &Config, template: &CallbackTemplate, is_managed: bool) -> TemplateReport {
    let mut report = TemplateReport {
        id: template.template_id,
        name: template.template_name.clone(),
        is_managed,
        key: key_match(config, template),
        here: Vec::new(),
        unset: Vec::new(),
        not_reported: Vec::new(),
        elsewhere: Vec::new(),
    };
    for kind in UrlKind::ALL {
        match template.url(kind) {
            TemplateUrl::Unset => report.unset.push(kind),
            TemplateUrl::NotReported => report.not_reported.push(kind),
            TemplateUrl::Set(url) => match url_problem(config, &url) {
                None => report.here.push(kind),
                Some(why) => report.elsewhere.push((kind, why)),
            },
        }
    }
    report
}

/// Why a URL cannot be that of this intake.
fn url_problem(config: &Config, url: &str) -> Option<String> {
    let Some(location) = CallbackUrl::parse(url) else {
        return Some("is not an http or https URL without a query".to_owned());
    };
    if !is_below(location.path(), &config.http.path) {
        return Some(format!("leads to {}, to a path outside http.path", location.origin()));
    }
    if location.is_plain() && config.access.tls.is_some() {
        return Some(format!(
            "leads to {}, but is http, and the intake uses TLS",
            location.origin()
        ));
    }
    None
}

fn key_match(config: &Config, template: &CallbackTemplate) -> KeyMatch {
    let Some(used) = CallbackKey::new(template.callback_key.text()) else { return KeyMatch::None };
    let found = config.verifier.keys.iter().find(|key| key.has_same_secret(&used));
    found.map_or(KeyMatch::Unknown, |key| KeyMatch::Known(key.name().to_owned()))
}

impl StatusReport {
    fn add_domain(&mut self, config: &Config, domain: &PushDomain, rules: &[CallbackRule]) {
        let mut found = false;
        for rule in rules.iter().filter(|rule| rule.domain_name == domain.name) {
            found = true;
            let place = shown(&rule.domain_name, &rule.app_name);
            self.domains
                .push((domain.name.clone(), Some((rule.app_name.clone(), rule.template_id))));
            match self.templates.get(&rule.template_id) {
                Some(template) => {
                    let (problems, notes) = template.findings(config, &place);
                    self.problems.extend(problems);
                    self.notes.extend(notes);
                }
                None => self.problems.push(format!(
                    "the rule of {place} names template {}, which does not exist",
                    rule.template_id
                )),
            }
        }
        if !found {
            self.domains.push((domain.name.clone(), None));
            self.problems.push(format!(
                "{} has no rule: none of its callbacks is sent; livebridge tencent setup creates one",
                domain.name
            ));
        }
        if !domain.is_enabled() {
            self.notes.push(format!("{} is disabled", domain.name));
        }
    }

    fn to_json(&self) -> Value {
        let names =
            |kinds: &[UrlKind]| -> Vec<&str> { kinds.iter().map(|kind| kind.name()).collect() };
        let templates = self.templates.values().map(|template| {
            let elsewhere: BTreeMap<&str, &str> =
                template.elsewhere.iter().map(|(kind, why)| (kind.name(), why.as_str())).collect();
            json!({
                "id": template.id,
                "name": template.name,
                "managed": template.is_managed,
                "key": match &template.key {
                    KeyMatch::Known(name) => json!({ "state": "known", "name": name }),
                    KeyMatch::Unknown => json!({ "state": "unknown" }),
                    KeyMatch::None => json!({ "state": "none" }),
                },
                "here": names(&template.here),
                "unset": names(&template.unset),
                "not_reported": names(&template.not_reported),
                "elsewhere": elsewhere,
            })
        });
        let domains = self.domains.iter().map(|(domain, rule)| match rule {
            Some((app, template)) => json!({ "domain": domain, "app": app, "template": template }),
            None => json!({ "domain": domain, "app": null, "template": null }),
        });
        json!({
            "ok": self.problems.is_empty(),
            "domains": domains.collect::<Vec<_>>(),
            "templates": templates.collect::<Vec<_>>(),
            "problems": self.problems,
            "notes": self.notes,
        })
    }

    fn print(&self) {
        print_out!(
            "{:<32} {:<10} {:>9}  {:<24} {:<12} URLs here",
            "DOMAIN",
            "APP",
            "TEMPLATE",
            "NAME",
            "KEY"
        );
        for (domain, rule) in &self.domains {
            let Some((app, id)) = rule else {
                print_out!("{domain:<32} {:<10} {:>9}", "-", "-");
                continue;
            };
            let app = if app.is_empty() { "(all)" } else { app };
            let template = self.templates.get(id);
            let (name, key, here) = template.map_or(("", "-", String::new()), |template| {
                let key = match &template.key {
                    KeyMatch::Known(name) => name.as_str(),
                    KeyMatch::Unknown => "(unknown)",
                    KeyMatch::None => "(none)",
                };
                let here = format!("{} of {}", template.here.len(), UrlKind::ALL.len());
                (template.name.as_str(), key, here)
            });
            print_out!("{domain:<32} {app:<10} {id:>9}  {name:<24} {key:<12} {here}");
        }
        for note in &self.notes {
            print_out!("note  {note}");
        }
        for problem in &self.problems {
            print_out!("FAIL  {problem}");
        }
        print_out!("{} problems", self.problems.len());
    }
}

impl TemplateReport {
    /// Problems and notes of a rule that names this template.
    fn findings(&self, config: &Config, place: &str) -> (Vec<String>, Vec<String>) {
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let of = format!("{place} (template {})", self.id);
        if self.here.is_empty() && self.elsewhere.is_empty() {
            problems.push(format!("{of}: the template has no URL"));
        }
        for (kind, why) in &self.elsewhere {
            problems.push(format!("{of}: the URL of {kind} {why}"));
        }
        match self.key {
            KeyMatch::Known(_) => {}
            KeyMatch::Unknown if config.verifier.unsigned == UnsignedPolicy::All => {
                notes.push(format!(
                    "{of}: its key is not configured, so its signatures are accepted unverified"
                ));
            }
            KeyMatch::Unknown => problems.push(format!(
                "{of}: its key is none of those in callback.keys and callback.keys_file: every \
                 callback would be rejected with 401"
            )),
            KeyMatch::None if config.verifier.unsigned == UnsignedPolicy::All => {
                notes.push(format!("{of}: it has no key, so its callbacks are not signed"));
            }
            KeyMatch::None => problems.push(format!(
                "{of}: it has no key, so its callbacks are not signed and rejected with 401; \
                 livebridge tencent setup sets one"
            )),
        }
        let list =
            |kinds: &[UrlKind]| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        if !self.unset.is_empty() {
            notes.push(format!("{of}: no URL for {}", list(&self.unset)));
        }
        if !self.not_reported.is_empty() {
            let kinds = list(&self.not_reported);
            notes.push(format!("{of}: Tencent Cloud does not report the URL of {kinds}"));
        }
        (problems, notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_answered_at_http_path_and_below() {
        for (path, http_path, answered) in [
            ("/callback", "/callback", true),
            ("/callback/push", "/callback", true),
            ("/callback/", "/callback", true),
            ("/callbacks", "/callback", false),
            ("/", "/callback", false),
            ("/push", "/", true),
            ("/", "/", true),
        ] {
            assert_eq!(is_below(path, http_path), answered, "{path} {http_path}");
        }
    }

    #[test]
    fn each_kind_has_a_url_of_its_own_below_the_one_that_is_given() {
        let location = CallbackUrl::parse("https://events.example.com/callback/").unwrap();
        assert_eq!(
            location.of(UrlKind::RecordStatus),
            "https://events.example.com/callback/record-status"
        );
        let location = CallbackUrl::parse("http://10.0.0.1:8080").unwrap();
        assert_eq!(location.of(UrlKind::Push), "http://10.0.0.1:8080/push");
        for url in ["events.example.com/callback", "ftp://x/y", "https://x/?a=b", "https://u:p@x/"]
        {
            assert!(CallbackUrl::parse(url).is_none(), "{url}");
        }
    }
}
