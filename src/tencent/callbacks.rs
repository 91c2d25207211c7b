//! Callback templates, the rules that bind them to domains, and the domains.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{Action, Client, TencentError};
use crate::event::EventType;
use crate::secret;

/// A kind of event that a template has a URL of its own for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UrlKind {
    /// A stream has begun.
    Push,
    /// A stream has ended.
    Interrupt,
    /// A recording is complete.
    Record,
    /// A recording has begun, paused or ended.
    RecordStatus,
    /// A recording has had a problem.
    RecordException,
    /// A screenshot is taken.
    Screenshot,
    /// A picture is suspicious.
    PornDetection,
    /// A sound is suspicious.
    AudioModeration,
    /// A stream arrives badly.
    PushException,
}

impl UrlKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Push,
        Self::Interrupt,
        Self::Record,
        Self::RecordStatus,
        Self::RecordException,
        Self::Screenshot,
        Self::PornDetection,
        Self::AudioModeration,
        Self::PushException,
    ];

    /// The type of the events.
    #[must_use]
    pub fn event_type(self) -> EventType {
        EventType(match self {
            Self::Push => 1,
            Self::Interrupt => 0,
            Self::Record => 100,
            Self::RecordStatus => 332,
            Self::RecordException => 341,
            Self::Screenshot => 200,
            Self::PornDetection => 317,
            Self::AudioModeration => 315,
            Self::PushException => 321,
        })
    }

    /// The name of the events' type; the last segment of the URL's path.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.event_type().name().unwrap_or_default()
    }

    /// The kind that a name or number of an event type spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let event_type = EventType::parse(text)?;
        Self::ALL.into_iter().find(|kind| kind.event_type() == event_type)
    }

    /// The member of the template.
    #[must_use]
    pub fn member(self) -> &'static str {
        match self {
            Self::Push => "StreamBeginNotifyUrl",
            Self::Interrupt => "StreamEndNotifyUrl",
            Self::Record => "RecordNotifyUrl",
            Self::RecordStatus => "RecordStatusNotifyUrl",
            Self::RecordException => "RecordExceptionNotifyUrl",
            Self::Screenshot => "SnapshotNotifyUrl",
            Self::PornDetection => "PornCensorshipNotifyUrl",
            Self::AudioModeration => "AudioAuditNotifyUrl",
            Self::PushException => "PushExceptionNotifyUrl",
        }
    }
}

impl fmt::Display for UrlKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a template says about one kind of event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateUrl {
    /// Its callbacks go there.
    Set(String),
    /// It has no callbacks.
    Unset,
    /// The answer has no such member. Some versions of the API's reference do not list
    /// `RecordStatusNotifyUrl` in it.
    NotReported,
}

/// The callback key of a template; empty when its callbacks are not signed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TemplateKey(String);

impl TemplateKey {
    /// Takes its text, which [`secret::redact`] masks from then on.
    #[must_use]
    pub fn new(text: &str) -> Self {
        secret::remember(text);
        Self(text.to_owned())
    }

    /// The text, to be compared or sent.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TemplateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TemplateKey(..)")
    }
}

impl<'de> Deserialize<'de> for TemplateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(Self::new(&text.unwrap_or_default()))
    }
}

/// A callback template.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CallbackTemplate {
    /// Its number.
    #[serde(default)]
    pub template_id: i64,
    /// Its name, which need not be unique.
    #[serde(default, deserialize_with = "or_default")]
    pub template_name: String,
    /// Its description.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// Its key.
    #[serde(default)]
    pub callback_key: TemplateKey,
    #[serde(flatten)]
    members: BTreeMap<String, Value>,
}

impl CallbackTemplate {
    /// A template that does not exist yet; without URLs.
    #[must_use]
    pub fn new(name: &str, description: &str, key: TemplateKey) -> Self {
        Self {
            template_id: 0,
            template_name: name.to_owned(),
            description: description.to_owned(),
            callback_key: key,
            members: BTreeMap::new(),
        }
    }

    /// The URL of a kind of event.
    #[must_use]
    pub fn url(&self, kind: UrlKind) -> TemplateUrl {
        match self.members.get(kind.member()) {
            Some(Value::String(url)) if !url.is_empty() => TemplateUrl::Set(url.clone()),
            Some(_) => TemplateUrl::Unset,
            None => TemplateUrl::NotReported,
        }
    }

    /// Sets the URL of a kind of event; an empty one removes it.
    pub fn set_url(&mut self, kind: UrlKind, url: &str) {
        self.members.insert(kind.member().to_owned(), Value::String(url.to_owned()));
    }

    /// The members that are sent: those that livebridge knows. What the answer has beyond them
    /// stays as it is.
    fn parameters(&self) -> serde_json::Map<String, Value> {
        let mut parameters = serde_json::Map::new();
        for kind in UrlKind::ALL {
            if let Some(Value::String(url)) = self.members.get(kind.member()) {
                parameters.insert(kind.member().to_owned(), Value::String(url.clone()));
            }
        }
        for (member, value) in [
            ("TemplateName", &self.template_name),
            ("Description", &self.description),
            ("CallbackKey", &self.callback_key.0),
        ] {
            parameters.insert(member.to_owned(), Value::String(value.clone()));
        }
        parameters
    }
}

/// A rule: which template the callbacks of a domain and an app follow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CallbackRule {
    /// The push domain.
    pub domain_name: String,
    /// The first segment of the push path; empty for all of the domain.
    #[serde(default, deserialize_with = "or_default")]
    pub app_name: String,
    /// The template.
    pub template_id: i64,
}

/// A domain that streams are pushed to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PushDomain {
    /// Its name.
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    status: i64,
}

impl PushDomain {
    /// Whether streams can be pushed to it.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.status == 1
    }
}

/// A value that may be null, as the API's reference says of many.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Parameters of an action that needs none.
#[derive(Serialize)]
struct Nothing {}

impl Client {
    /// All callback templates.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn templates(&self) -> Result<Vec<CallbackTemplate>, TencentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            templates: Vec<CallbackTemplate>,
        }
        let answer: Answer = self.call(Action::DescribeLiveCallbackTemplates, &Nothing {})?;
        Ok(answer.templates)
    }

    /// Creates a template and returns its number.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn create_template(&self, template: &CallbackTemplate) -> Result<i64, TencentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            template_id: i64,
        }
        let parameters = template.parameters();
        let answer: Answer = self.call(Action::CreateLiveCallbackTemplate, &parameters)?;
        Ok(answer.template_id)
    }

    /// Sets the members of the template with this number.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn modify_template(&self, template: &CallbackTemplate) -> Result<(), TencentError> {
        let mut parameters = template.parameters();
        parameters.insert("TemplateId".to_owned(), template.template_id.into());
        self.call::<IgnoredAny>(Action::ModifyLiveCallbackTemplate, &parameters).map(drop)
    }

    /// Deletes a template, which no rule may name.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn delete_template(&self, template_id: i64) -> Result<(), TencentError> {
        let parameters = json!({ "TemplateId": template_id });
        self.call::<IgnoredAny>(Action::DeleteLiveCallbackTemplate, &parameters).map(drop)
    }

    /// All callback rules.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn rules(&self) -> Result<Vec<CallbackRule>, TencentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            rules: Vec<CallbackRule>,
        }
        let answer: Answer = self.call(Action::DescribeLiveCallbackRules, &Nothing {})?;
        Ok(answer.rules)
    }

    /// Creates a rule.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn create_rule(&self, rule: &CallbackRule) -> Result<(), TencentError> {
        let parameters = json!({
            "DomainName": rule.domain_name,
            "AppName": rule.app_name,
            "TemplateId": rule.template_id,
        });
        self.call::<IgnoredAny>(Action::CreateLiveCallbackRule, &parameters).map(drop)
    }

    /// Deletes the rule of a domain and an app.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn delete_rule(&self, rule: &CallbackRule) -> Result<(), TencentError> {
        let parameters = json!({ "DomainName": rule.domain_name, "AppName": rule.app_name });
        self.call::<IgnoredAny>(Action::DeleteLiveCallbackRule, &parameters).map(drop)
    }

    /// All push domains.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn push_domains(&self) -> Result<Vec<PushDomain>, TencentError> {
        /// The largest page that the API returns.
        const PAGE: usize = 100;
        /// Far beyond what an account may have; an answer that repeats itself must end.
        const PAGES_MAX: usize = 1000;
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            domain_list: Vec<PushDomain>,
        }
        let mut domains = Vec::new();
        for page in 1..=PAGES_MAX {
            let parameters = json!({ "DomainType": 0, "PageSize": PAGE, "PageNum": page });
            let answer: Answer = self.call(Action::DescribeLiveDomains, &parameters)?;
            let is_last = answer.domain_list.len() < PAGE;
            domains.extend(answer.domain_list);
            if is_last {
                break;
            }
        }
        Ok(domains)
    }
}
