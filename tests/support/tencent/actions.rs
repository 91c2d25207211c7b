//! What each action does, with its documented limits.

use std::time::{Duration, UNIX_EPOCH};

use livebridge::event::Timestamp;
use serde_json::{Map, Value, json};

use super::{Failure, State};

type Fields = Map<String, Value>;

const URLS: [&str; 9] = [
    "StreamBeginNotifyUrl", "StreamEndNotifyUrl", "RecordNotifyUrl", "RecordStatusNotifyUrl",
    "SnapshotNotifyUrl", "PornCensorshipNotifyUrl", "PushExceptionNotifyUrl",
    "AudioAuditNotifyUrl", "RecordExceptionNotifyUrl",
];
const TEMPLATES_MAX: usize = 50;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// Entries of a stream query that any page reaches.
const REACHABLE: usize = 10_000;

/// A stream that was pushed; times in milliseconds since the epoch.
#[derive(Clone, Debug)]
pub struct Stream {
    pub domain: String,
    pub app: String,
    pub name: String,
    pub started: i64,
    /// `None` while it is pushed.
    pub ended: Option<i64>,
}

/// A record of a callback.
#[derive(Clone, Debug)]
pub struct Record {
    pub stream: String,
    pub event_type: i64,
    /// Milliseconds since the epoch.
    pub time: i64,
    pub request: String,
    pub response: String,
    /// 0 for delivered.
    pub result: i64,
}

impl Stream {
    /// A stream of one domain and app that is still being pushed.
    pub fn running(name: impl Into<String>, started: Timestamp) -> Self {
        Self {
            domain: "push.example.com".into(),
            app: "live".into(),
            name: name.into(),
            started: started.as_millis(),
            ended: None,
        }
    }
}

impl Record {
    /// The record of a callback that had no response.
    pub fn failed(
        stream: impl Into<String>,
        event_type: i64,
        time: Timestamp,
        request: impl Into<String>,
    ) -> Self {
        let (stream, request) = (stream.into(), request.into());
        let (time, response) = (time.as_millis(), String::new());
        Self { stream, event_type, time, request, response, result: 1 }
    }
}

fn invalid(what: impl Into<String>) -> Failure {
    ("InvalidParameterValue", what.into())
}

fn text<'a>(fields: &'a Fields, name: &str) -> Result<Option<&'a str>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("{name} is no text"))),
    }
}

fn required<'a>(fields: &'a Fields, name: &str) -> Result<&'a str, Failure> {
    text(fields, name)?.ok_or(("MissingParameter", name.to_owned()))
}

fn number(fields: &Fields, name: &str) -> Result<Option<i64>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or_else(|| invalid(format!("{name} no number"))),
    }
}

/// A time in one of the two forms: UTC with a `T` and a `Z`, or Beijing's with a blank.
pub(super) fn time_text(millis: i64, utc: bool) -> String {
    let shifted = if utc { millis } else { millis + 8 * HOUR };
    let time = UNIX_EPOCH + Duration::from_millis(u64::try_from(shifted).unwrap());
    let text = humantime::format_rfc3339_seconds(time).to_string();
    if utc { text } else { text.replace('T', " ").replace('Z', "") }
}

/// The time, and whether it was in the form of UTC.
fn parse_time(text: &str) -> Result<(i64, bool), Failure> {
    let utc = text.ends_with('Z') && text.contains('T') && text.len() == 20;
    let beijing = text.len() == 19 && text.as_bytes()[10] == b' ';
    if !utc && !beijing {
        return Err(invalid(format!("{text:?} is in neither form")));
    }
    let written = if utc { text.to_owned() } else { text.replace(' ', "T") + "Z" };
    let time = humantime::parse_rfc3339(&written).map_err(|cause| invalid(cause.to_string()))?;
    let millis = time.duration_since(UNIX_EPOCH).map_err(|_| invalid("before 1970"))?.as_millis();
    let millis = i64::try_from(millis).map_err(|_| invalid("too late"))?;
    Ok((if utc { millis } else { millis - 8 * HOUR }, utc))
}

/// Start and end in milliseconds, and the form in which they were asked.
fn range(
    fields: &Fields,
    span_max: i64,
    back_max: i64,
    now: i64,
) -> Result<(i64, i64, bool), Failure> {
    let (start, utc) = parse_time(required(fields, "StartTime")?)?;
    let (end, of_end) = parse_time(required(fields, "EndTime")?)?;
    if utc != of_end {
        return Err(invalid("the two times have two forms"));
    }
    if end < start || end - start > span_max {
        return Err(invalid("the range is too long or runs backwards"));
    }
    if start < now - back_max {
        return Err(invalid("the start is too long ago"));
    }
    Ok((start, end, utc))
}

/// The entries of the page that is asked for, with the members that tell of paging.
fn page<T>(
    fields: &Fields,
    entries: &[T],
    show: impl Fn(&T) -> Value,
    name: &str,
    reachable: usize,
) -> Result<Fields, Failure> {
    let number_of = |name, default| {
        let value = number(fields, name)?.unwrap_or(default);
        usize::try_from(value).map_err(|_| invalid(format!("{name} below 0")))
    };
    let (page, size) = (number_of("PageNum", 1)?, number_of("PageSize", 10)?);
    if page == 0 || !(1..=100).contains(&size) {
        return Err(invalid("PageNum or PageSize"));
    }
    let total = entries.len();
    if page * size > reachable && total > reachable {
        return Err(invalid("only the first 10000 entries can be reached"));
    }
    let listed: Vec<Value> = entries.iter().skip((page - 1) * size).take(size).map(show).collect();
    let mut answer = Fields::new();
    answer.insert(name.into(), listed.into());
    answer.insert("PageNum".into(), page.into());
    answer.insert("PageSize".into(), size.into());
    answer.insert("TotalNum".into(), total.into());
    answer.insert("TotalPage".into(), total.div_ceil(size).into());
    Ok(answer)
}

impl State {
    /// Milliseconds since the epoch, by its clock.
    fn now(&self) -> i64 {
        Timestamp::now().as_millis() + self.clock_ahead * 1000
    }

    pub(super) fn perform(&mut self, action: &str, fields: &Fields) -> Result<Fields, Failure> {
        match action {
            "CreateLiveCallbackTemplate" => self.create_template(fields),
            "ModifyLiveCallbackTemplate" => self.modify_template(fields),
            "DeleteLiveCallbackTemplate" => self.delete_template(fields),
            "DescribeLiveCallbackTemplates" => Ok(self.describe_templates()),
            "CreateLiveCallbackRule" => self.create_rule(fields),
            "DeleteLiveCallbackRule" => self.delete_rule(fields),
            "DescribeLiveCallbackRules" => Ok(self.describe_rules()),
            "DescribeLiveDomains" => self.describe_domains(fields),
            "DescribeLiveStreamEventList" => self.describe_streams(fields),
            "DescribeCallbackRecordsList" => self.describe_records(fields),
            _ => Err(("InvalidAction", action.to_owned())),
        }
    }

    /// A template of another owner; returns its number.
    pub fn add_template(&mut self, fields: &Value) -> i64 {
        let answer = self.create_template(fields.as_object().unwrap()).unwrap();
        answer["TemplateId"].as_i64().unwrap()
    }

    /// The template with this number.
    pub fn template(&self, id: i64) -> &Fields {
        self.templates.iter().find(|template| template["TemplateId"] == id).unwrap()
    }

    fn create_template(&mut self, fields: &Fields) -> Result<Fields, Failure> {
        if self.templates.len() >= TEMPLATES_MAX {
            return Err(("InternalError.ConfOutLimit", "50 templates exist".to_owned()));
        }
        required(fields, "TemplateName")?;
        let mut template = fields.clone();
        check_template(&template)?;
        self.next_template += 1;
        template.insert("TemplateId".into(), self.next_template.into());
        self.templates.push(template);
        let mut answer = Fields::new();
        answer.insert("TemplateId".into(), self.next_template.into());
        Ok(answer)
    }

    fn modify_template(&mut self, fields: &Fields) -> Result<Fields, Failure> {
        let id = number(fields, "TemplateId")?.ok_or(("MissingParameter", "TemplateId".into()))?;
        let found = self.templates.iter_mut().find(|template| template["TemplateId"] == id);
        let template = found.ok_or(("InternalError.ConfNotFound", format!("no template {id}")))?;
        let mut changed = template.clone();
        changed.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        check_template(&changed)?;
        *template = changed;
        Ok(Fields::new())
    }

    fn delete_template(&mut self, fields: &Fields) -> Result<Fields, Failure> {
        let id = number(fields, "TemplateId")?.ok_or(("MissingParameter", "TemplateId".into()))?;
        if self.rules.iter().any(|(_, _, template)| *template == id) {
            return Err(("InternalError.ConfInUsed", "a rule names it".to_owned()));
        }
        let before = self.templates.len();
        self.templates.retain(|template| template["TemplateId"] != id);
        if self.templates.len() == before {
            return Err(("InternalError.ConfNotFound", format!("no template {id}")));
        }
        Ok(Fields::new())
    }

    fn describe_templates(&self) -> Fields {
        let listed = self.templates.iter().map(|template| {
            let mut listed = template.clone();
            for url in URLS {
                // Null, as the reference says, for what is not set.
                listed.entry(url).or_insert(Value::Null);
            }
            if !self.reports_record_status {
                listed.remove("RecordStatusNotifyUrl");
            }
            Value::Object(listed)
        });
        let mut answer = Fields::new();
        answer.insert("Templates".into(), listed.collect());
        answer
    }

    fn create_rule(&mut self, fields: &Fields) -> Result<Fields, Failure> {
        let (domain, app) = (required(fields, "DomainName")?, required(fields, "AppName")?);
        let id = number(fields, "TemplateId")?.ok_or(("MissingParameter", "TemplateId".into()))?;
        if !self.domains.iter().any(|(name, _)| name == domain) {
            return Err(("ResourceNotFound.DomainNotExist", format!("no domain {domain}")));
        }
        if !self.templates.iter().any(|template| template["TemplateId"] == id) {
            return Err(("InternalError.ConfNotFound", format!("no template {id}")));
        }
        if self.rules.iter().any(|(d, a, _)| d == domain && a == app) {
            return Err(("FailedOperation.RuleAlreadyExist", format!("{domain}/{app} has a rule")));
        }
        self.rules.push((domain.to_owned(), app.to_owned(), id));
        Ok(Fields::new())
    }

    fn delete_rule(&mut self, fields: &Fields) -> Result<Fields, Failure> {
        let (domain, app) = (required(fields, "DomainName")?, required(fields, "AppName")?);
        let before = self.rules.len();
        self.rules.retain(|(d, a, _)| d != domain || a != app);
        if self.rules.len() == before {
            return Err(("InternalError.RuleNotFound", format!("no rule of {domain}/{app}")));
        }
        Ok(Fields::new())
    }

    fn describe_rules(&self) -> Fields {
        let rules = self.rules.iter().map(|(domain, app, template)| {
            json!({
                "CreateTime": "2026-01-01 08:00:00", "UpdateTime": "2026-01-01 08:00:00",
                "DomainName": domain, "AppName": app, "TemplateId": template,
            })
        });
        let mut answer = Fields::new();
        answer.insert("Rules".into(), rules.collect());
        answer
    }

    fn describe_domains(&self, fields: &Fields) -> Result<Fields, Failure> {
        if number(fields, "DomainType")? == Some(1) {
            return page(fields, &[], |()| Value::Null, "DomainList", usize::MAX);
        }
        if number(fields, "PageSize")?.is_some_and(|size| size < 10) {
            return Err(invalid("PageSize is 10 to 100"));
        }
        let show = |(name, on): &(String, bool)| json!({ "Name": name, "Type": 0, "Status": i64::from(*on) });
        page(fields, &self.domains, show, "DomainList", usize::MAX)
    }

    fn describe_streams(&self, fields: &Fields) -> Result<Fields, Failure> {
        let (start, end, utc) = range(fields, 31 * DAY, 60 * DAY, self.now())?;
        if !utc {
            return Err(invalid("the times must be in UTC"));
        }
        let within = |time: i64| (start..=end).contains(&time);
        let mut listed: Vec<&Stream> = self
            .streams
            .iter()
            .filter(|stream| within(stream.started) || stream.ended.is_some_and(within))
            .collect();
        listed.sort_by_key(|stream| stream.ended.unwrap_or(i64::MAX));
        if number(fields, "IsAsc")? != Some(1) {
            listed.reverse();
        }
        let show = |stream: &&Stream| {
            let ended = stream.ended.map(|time| time_text(time, true));
            json!({
                "AppName": stream.app, "DomainName": stream.domain, "StreamName": stream.name,
                "StreamStartTime": time_text(stream.started, true),
                "StreamEndTime": ended.unwrap_or_default(),
                "StopReason": "", "Duration": 0, "ClientIp": "198.51.100.1", "Resolution": "",
            })
        };
        page(fields, &listed, show, "EventList", REACHABLE)
    }

    fn describe_records(&self, fields: &Fields) -> Result<Fields, Failure> {
        let (start, end, utc) = range(fields, DAY, 14 * DAY, self.now())?;
        let stream = required(fields, "StreamName")?;
        let listed: Vec<&Record> = self
            .records
            .iter()
            .filter(|record| record.stream == stream && (start..=end).contains(&record.time))
            .collect();
        let show = |record: &&Record| {
            json!({
                "EventTime": time_text(record.time, utc), "EventType": record.event_type,
                "Request": record.request, "Response": record.response,
                "ResponseTime": time_text(record.time + 1000, utc),
                "ResultCode": record.result, "StreamId": record.stream,
            })
        };
        page(fields, &listed, show, "DataInfoList", usize::MAX)
    }
}

/// Letters of any language, digits, `_` and `-`; Chinese is the only other script that is allowed.
fn is_name(text: &str) -> bool {
    text.chars().all(|c| {
        c.is_ascii_alphanumeric() || "_-".contains(c) || ('\u{4e00}'..='\u{9fff}').contains(&c)
    })
}

fn check_template(fields: &Fields) -> Result<(), Failure> {
    let known =
        ["TemplateId", "TemplateName", "Description", "CallbackKey", "RecordExceptionLevels"];
    if let Some(name) = fields.keys().find(|n| !known.contains(&&***n) && !URLS.contains(&&***n)) {
        return Err(("UnknownParameter", name.clone()));
    }
    for (name, bytes_max) in [("TemplateName", 255), ("Description", 1024)] {
        let value = text(fields, name)?.unwrap_or_default();
        if value.len() > bytes_max || !is_name(value) {
            return Err(("InvalidParameter.ArgsNotMatch", format!("{name}: {value:?}")));
        }
    }
    let key = text(fields, "CallbackKey")?.unwrap_or_default();
    if key.len() > 32 || !key.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(invalid("CallbackKey has up to 32 letters and digits"));
    }
    let mut urls = 0;
    for url in URLS {
        let Some(url) = text(fields, url)?.filter(|url| !url.is_empty()) else { continue };
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(("InvalidParameter.InvalidCallbackUrl", url.to_owned()));
        }
        urls += 1;
    }
    if urls == 0 {
        return Err(("InvalidParameter.ArgsNotMatch", "at least one URL".to_owned()));
    }
    Ok(())
}
