//! The client of Tencent Cloud's API against a fake that verifies signatures and enforces limits.

use std::time::{Duration, Instant};

use livebridge::event::Timestamp;
use livebridge::tencent::{
    CallbackRule, CallbackTemplate, Client, Credentials, Endpoint, Options, Reason, TemplateKey,
    TemplateUrl, UrlKind,
};

use crate::support::tencent::{Fault, Record, SECRET_ID, SECRET_KEY, Stream, Tencent};

/// Longer than any answer takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

fn client(endpoint: &str, credentials: Credentials, timeout: Duration) -> Client {
    let endpoint = Endpoint::parse(endpoint).unwrap();
    let options = Options { endpoint, timeout, pause: Duration::from_millis(100) };
    Client::new(credentials, options).unwrap()
}

pub(super) fn client_of(tencent: &Tencent) -> Client {
    impatient_client_of(tencent, TIMEOUT)
}

fn impatient_client_of(tencent: &Tencent, timeout: Duration) -> Client {
    let credentials = Credentials::new(SECRET_ID, SECRET_KEY, None).unwrap();
    client(&tencent.endpoint(), credentials, timeout)
}

fn template(name: &str) -> CallbackTemplate {
    let mut template = CallbackTemplate::new(name, "of-a-test", TemplateKey::new("callbackKey01"));
    template.set_url(UrlKind::Push, "http://127.0.0.1:1/callback/push");
    template
}

#[test]
fn templates_and_rules_are_created_changed_and_deleted() {
    let tencent = Tencent::start();
    tencent.state().domains.push(("push.example.com".into(), true));
    let client = client_of(&tencent);
    assert!(client.templates().unwrap().is_empty());
    let id = client.create_template(&template("one")).unwrap();
    let mut listed = client.templates().unwrap().remove(0);
    assert_eq!((listed.template_id, listed.template_name.as_str()), (id, "one"));
    assert_eq!(listed.callback_key.text(), "callbackKey01");
    let url = TemplateUrl::Set("http://127.0.0.1:1/callback/push".into());
    assert_eq!(listed.url(UrlKind::Push), url);
    assert_eq!(listed.url(UrlKind::Interrupt), TemplateUrl::Unset);
    listed.set_url(UrlKind::Interrupt, "http://127.0.0.1:1/callback/interrupt");
    client.modify_template(&listed).unwrap();
    let rule = CallbackRule {
        domain_name: "push.example.com".into(),
        app_name: "live".into(),
        template_id: id,
    };
    client.create_rule(&rule).unwrap();
    assert_eq!(client.rules().unwrap(), std::slice::from_ref(&rule));
    assert_eq!(client.delete_template(id).unwrap_err().reason(), Some(Reason::InUse));
    assert_eq!(client.create_rule(&rule).unwrap_err().reason(), Some(Reason::AlreadyExists));
    client.delete_rule(&rule).unwrap();
    client.delete_template(id).unwrap();
    assert_eq!(client.delete_template(id).unwrap_err().reason(), Some(Reason::NotFound));
    let missing = CallbackRule { domain_name: "push.example.org".into(), ..rule };
    assert_eq!(client.create_rule(&missing).unwrap_err().reason(), Some(Reason::NotFound));
}

#[test]
fn a_member_that_is_not_reported_differs_from_one_that_is_not_set() {
    let tencent = Tencent::start();
    tencent.state().reports_record_status = false;
    let client = client_of(&tencent);
    client.create_template(&template("one")).unwrap();
    let listed = client.templates().unwrap().remove(0);
    assert_eq!(listed.url(UrlKind::RecordStatus), TemplateUrl::NotReported);
    assert_eq!(listed.url(UrlKind::Record), TemplateUrl::Unset);
}

#[test]
fn all_pages_of_domains_are_read() {
    let tencent = Tencent::start();
    for number in 0..250 {
        tencent.state().domains.push((format!("push{number}.example.com"), number % 2 == 0));
    }
    let domains = client_of(&tencent).push_domains().unwrap();
    assert_eq!(domains.len(), 250);
    assert_eq!(domains.iter().filter(|domain| domain.is_enabled()).count(), 125);
    assert_eq!(tencent.count("DescribeLiveDomains"), 3);
}

#[test]
fn history_is_read_page_by_page_within_the_documented_limits() {
    let tencent = Tencent::start();
    let now = Timestamp::now();
    let ago = |minutes: u64| now.before(Duration::from_mins(minutes));
    for number in 0..230 {
        let running = Stream::running(format!("stream-{number:03}"), ago(60));
        let ended = Some(ago(50).as_millis() + number);
        tencent.state().streams.push(Stream { ended, ..running });
        let event_type = [0, 1, 100, 200][usize::try_from(number).unwrap() % 4];
        let failed = Record::failed("stream-007", event_type, ago(55), "%7B%7D");
        tencent.state().records.push(Record { result: number % 2, ..failed });
    }
    let client = client_of(&tencent);
    let (mut page, mut names) = (1, Vec::new());
    loop {
        let listed = client.stream_events(ago(120), now, page).unwrap();
        assert_eq!(listed.total, 230);
        names.extend(listed.entries.into_iter().map(|stream| stream.stream_name));
        if !listed.has_more || page > 3 {
            break;
        }
        page += 1;
    }
    assert_eq!((page, names.len()), (3, 230));
    assert!(names.is_sorted());

    let (mut page, mut failed) = (1, 0);
    loop {
        let listed = client.callback_records("stream-007", ago(120), now, page).unwrap();
        assert_eq!(listed.total, 230);
        failed += listed.entries.iter().filter(|record| !record.is_delivered()).count();
        let time = listed.entries[0].event_time.unwrap();
        assert_eq!(time.as_millis(), ago(55).as_millis() / 1000 * 1000);
        if !listed.has_more || page > 3 {
            break;
        }
        page += 1;
    }
    assert_eq!((page, failed), (3, 115));
    let since = now.before(Duration::from_hours(25));
    let error = client.callback_records("stream-007", since, now, 1).unwrap_err();
    assert_eq!(error.reason(), Some(Reason::WrongParameter), "{error}");
}

#[test]
fn a_read_is_repeated_after_a_fault_and_a_creation_is_not() {
    for fault in [
        Fault::Close,
        Fault::CloseAfter,
        Fault::Hang,
        Fault::Status(502),
        Fault::Code("InternalError"),
    ] {
        let tencent = Tencent::start();
        let hangs = matches!(fault, Fault::Hang);
        let timeout = if hangs { Duration::from_secs(2) } else { TIMEOUT };
        let client = impatient_client_of(&tencent, timeout);
        tencent.inject("", fault.clone());
        assert!(client.templates().is_ok(), "{fault:?}");
        tencent.inject("", fault.clone());
        let error = client.create_template(&template("one")).unwrap_err();
        let created = usize::from(matches!(fault, Fault::CloseAfter));
        assert_eq!(tencent.state().templates.len(), created, "{fault:?}: {error}");
    }
}

#[test]
fn a_rate_limit_is_waited_for_whatever_the_action_is() {
    let tencent = Tencent::start();
    let client = client_of(&tencent);
    for _ in 0..3 {
        tencent.inject("", Fault::Code("RequestLimitExceeded"));
    }
    let started = Instant::now();
    client.create_template(&template("one")).unwrap();
    let pauses = Duration::from_millis(100 + 200 + 400);
    assert!(started.elapsed() >= pauses, "the pauses grow: {:?}", started.elapsed());
    assert_eq!(tencent.state().templates.len(), 1);
    for _ in 0..6 {
        tencent.inject("", Fault::Code("RequestLimitExceeded"));
    }
    let error = client.templates().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::RateLimited), "{error}");
}

#[test]
fn requests_keep_the_documented_rate() {
    let tencent = Tencent::start();
    let client = client_of(&tencent);
    let started = Instant::now();
    for _ in 0..40 {
        client.templates().unwrap();
    }
    // Two at once and eighteen a second, of the twenty that are allowed.
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn neither_errors_nor_debug_output_show_credentials() {
    let tencent = Tencent::start();
    let right = client_of(&tencent);
    tencent.inject("", Fault::Code("FailedOperation"));
    let error = right.templates().unwrap_err();
    let hidden = Credentials::new("AKIDhidden", "key-hidden-0", Some("token-hidden-0")).unwrap();
    let wrong = client(&tencent.endpoint(), hidden, TIMEOUT);
    let unknown = wrong.templates().unwrap_err();
    let text = format!("{error} {error:?} {unknown} {unknown:?} {right:?} {wrong:?}");
    for secret in [SECRET_ID, SECRET_KEY, "AKIDhidden", "key-hidden-0", "token-hidden-0"] {
        assert!(!text.contains(secret), "{text}");
    }
}
