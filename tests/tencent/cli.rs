//! `livebridge tencent` against a fake of Tencent Cloud's API, with running bridges.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::EventType;
use livebridge::sample::Samples;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::bridge::{Bridge, KEY};
use crate::support::kafka::UNREACHABLE;
use crate::support::process::{Finished, livebridge, run};
use crate::support::tencent::{Fault, SECRET_ID, SECRET_KEY, Tencent};

pub(super) const DOMAIN: &str = "push.example.com";
const URL_TYPES: [i64; 9] = [0, 1, 100, 200, 315, 317, 321, 332, 341];

/// A bridge without Kafka, with an empty file for callback keys, and an account with one domain.
pub(super) struct Bed {
    dir: TempDir,
    bridge: Bridge,
    pub(super) tencent: Tencent,
}

impl Bed {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        fs::write(&keys, "").unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o640)).unwrap();
        let bridge = Bridge::new("tencent", UNREACHABLE, "tencent")
            .set("CALLBACK_KEYS_FILE", keys.to_str().unwrap());
        let tencent = Tencent::start();
        tencent.state().domains.push((DOMAIN.into(), true));
        Self { dir, bridge, tencent }
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    fn keys_text(&self) -> String {
        fs::read_to_string(self.keys()).unwrap()
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/callback", self.bridge.intake())
    }

    /// A command with the bridge's configuration and the account's credentials.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = livebridge(arguments);
        command.envs(self.bridge.environment());
        command.env("TENCENTCLOUD_SECRET_ID", SECRET_ID).env("TENCENTCLOUD_SECRET_KEY", SECRET_KEY);
        command.args(["--endpoint", &self.tencent.endpoint()]);
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Finished {
        let finished = run(&mut self.command(arguments));
        for text in [&finished.stdout, &finished.stderr] {
            let keys = self.keys_text();
            let mut secrets = vec![SECRET_ID, SECRET_KEY, KEY];
            secrets.extend(keys.lines().filter_map(|line| line.split_whitespace().last()));
            for secret in secrets {
                assert!(!text.contains(secret), "{text}");
            }
        }
        finished
    }

    pub(super) fn setup(&self, more: &[&str]) -> Finished {
        let url = self.url();
        let arguments = ["tencent", "setup", "--url", &url, "--domain", DOMAIN];
        self.run(&[&arguments, more].concat())
    }

    fn send(&self, event_type: i64) -> Option<u16> {
        let event = Samples::new(CallbackKey::new("unused")).event(EventType(event_type));
        self.tencent.send_callback(DOMAIN, "live", event)
    }

    /// Waits until callbacks of the fake are accepted: the bridge reloads its files within seconds.
    fn wait_until_accepted(&self) {
        let is_accepted = || self.send(1) == Some(200);
        self.bridge.wait_until("accepting callbacks", Duration::from_secs(30), is_accepted);
    }
}

fn sets_up(finished: &Finished) {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("Done: template"), "{finished:?}");
}

#[test]
fn setup_leads_from_an_empty_account_to_signed_callbacks_that_are_answered_200() {
    let bed = Bed::new();
    bed.bridge.start();
    let dry = bed.setup(&[]);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    for said in
        ["add the callback key tencent-", "create the template", "create a rule of", "--yes"]
    {
        assert!(dry.stdout.contains(said), "{said}: {dry:?}");
    }
    assert!(bed.tencent.state().templates.is_empty() && bed.keys_text().is_empty());

    sets_up(&bed.setup(&["--yes"]));
    let keys = bed.keys_text();
    assert!(keys.starts_with("tencent-") && keys.lines().count() == 1, "a named key");
    assert_eq!(fs::metadata(bed.keys()).unwrap().mode() & 0o7777, 0o640, "the mode stays");
    bed.wait_until_accepted();
    for event_type in URL_TYPES {
        assert_eq!(bed.send(event_type), Some(200), "{event_type}");
    }
    let accepted = bed.bridge.get("/metrics");
    let name = keys.split(' ').next().unwrap();
    let series = format!("livebridge_callback_key_accepted_total{{key=\"{name}\"}}");
    assert!(accepted.contains(&series), "signed with the new key");
    let paths: Vec<String> = {
        let state = bed.tencent.state();
        let urls = state.templates[0].values().filter_map(Value::as_str);
        urls.filter(|url| url.starts_with("http")).map(str::to_owned).collect()
    };
    let mut distinct = paths.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!((paths.len(), distinct.len()), (9, 9), "each kind has its own path: {paths:?}");

    let again = bed.setup(&["--yes"]);
    assert!(again.stdout.starts_with("nothing to do"), "{again:?}");
    assert_eq!(bed.tencent.count("ModifyLiveCallbackTemplate"), 0);
    let status = bed.run(&["tencent", "status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(status.stdout.contains("9 of 9") && status.stdout.contains(name), "{status:?}");

    let fewer = bed.setup(&["--events", "push,interrupt", "--yes"]);
    assert!(fewer.stdout.contains("remove the URL of record"), "{fewer:?}");
    assert_eq!((bed.send(1), bed.send(100)), (Some(200), None));

    let dry = bed.run(&["tencent", "remove"]);
    assert!(dry.stdout.contains("delete the rule of push.example.com"), "{dry:?}");
    assert_eq!(bed.tencent.state().rules.len(), 1);
    let removed = bed.run(&["tencent", "remove", "--yes"]);
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert!(bed.tencent.state().templates.is_empty() && bed.tencent.state().rules.is_empty());
    let again = bed.run(&["tencent", "remove", "--yes"]);
    assert!(again.code == Some(0) && again.stdout.starts_with("nothing to do"), "{again:?}");
}

#[test]
fn setup_interrupted_by_a_lost_answer_is_completed_by_the_next_run() {
    let bed = Bed::new();
    for (action, fault) in [
        ("CreateLiveCallbackTemplate", Fault::Close),
        ("CreateLiveCallbackTemplate", Fault::CloseAfter),
        ("CreateLiveCallbackRule", Fault::Close),
        ("CreateLiveCallbackRule", Fault::CloseAfter),
    ] {
        bed.tencent.inject(action, fault);
        assert_eq!(bed.setup(&["--yes"]).code, Some(1));
    }
    let last = bed.setup(&["--yes"]);
    assert!(last.code == Some(0) && last.stdout.starts_with("nothing to do"), "{last:?}");
    assert_eq!(bed.tencent.state().templates.len(), 1);
    assert_eq!(bed.keys_text().lines().count(), 1, "one key for all runs");
}

#[test]
fn setup_sets_a_url_again_that_is_not_reported() {
    let bed = Bed::new();
    bed.tencent.state().reports_record_status = false;
    sets_up(&bed.setup(&["--yes"]));
    let again = bed.setup(&["--yes"]);
    assert!(again.stdout.contains("set the URL of record-status"), "{again:?}");
    assert!(!again.stdout.contains("set the URL of push"), "{again:?}");
    let status = bed.run(&["tencent", "status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    assert!(status.stdout.contains("does not report the URL of record-status"), "{status:?}");
}

#[test]
fn setup_uses_a_configured_key_that_fits() {
    let bed = Bed::new();
    fs::write(bed.keys(), "main mainKey0123456789\nspare spareKey0123456789\n").unwrap();
    sets_up(&bed.setup(&["--yes"]));
    let key = || bed.tencent.state().templates[0]["CallbackKey"].as_str().unwrap().to_owned();
    assert_eq!(key(), "mainKey0123456789");
    sets_up(&bed.setup(&["--key", "spare", "--yes"]));
    assert_eq!(key(), "spareKey0123456789");
    let again = bed.setup(&["--yes"]);
    assert!(again.stdout.starts_with("nothing to do"), "the key in use stays: {again:?}");
    let unknown = bed.setup(&["--key", "nobody"]);
    assert_eq!(unknown.code, Some(64), "{unknown:?}");
    assert!(unknown.stderr.contains("main, spare"), "{unknown:?}");
    let unfit = bed.setup(&["--key", "key-1"]);
    assert!(unfit.code == Some(64) && unfit.stderr.contains("32 letters"), "{unfit:?}");
}

#[test]
fn setup_leaves_foreign_templates_and_rules_alone_unless_told_so() {
    let bed = Bed::new();
    let url = "http://192.0.2.1/other";
    let (same, other) = {
        let mut state = bed.tencent.state();
        let foreign = |name| json!({ "TemplateName": name, "StreamBeginNotifyUrl": url });
        let ids =
            (state.add_template(&foreign("livebridge")), state.add_template(&foreign("other")));
        state.rules.push((DOMAIN.into(), String::new(), ids.1));
        ids
    };
    let before = bed.tencent.state().templates.clone();
    let rejected = bed.setup(&["--yes"]);
    assert!(rejected.code == Some(64) && rejected.stderr.contains("--take-over"), "{rejected:?}");
    let rejected = bed.setup(&["--template", "mine", "--yes"]);
    assert!(rejected.stderr.contains(&format!("names template {other}")), "{rejected:?}");
    assert_eq!(bed.tencent.state().templates, before);
    let removed = bed.run(&["tencent", "remove", "--yes"]);
    assert!(removed.stdout.starts_with("nothing to do"), "{removed:?}");
    assert_eq!(bed.tencent.state().templates, before);

    sets_up(&bed.setup(&["--take-over", "--yes"]));
    let state = bed.tencent.state();
    assert_eq!(state.rules, [(DOMAIN.to_owned(), String::new(), same)]);
    assert_eq!(state.template(other)["StreamBeginNotifyUrl"], url, "not of this name: unchanged");
    assert_ne!(state.template(same)["StreamBeginNotifyUrl"], url);
}

#[test]
fn setup_rejects_urls_and_domains_that_cannot_work() {
    let bed = Bed::new();
    for (url, reason) in [
        ("http://example.com/other", "nor below it"),
        ("http://example.com/callbacks", "nor below it"),
        ("example.com/callback", "not a URL"),
        ("ftp://example.com/callback", "not a URL"),
        ("http://example.com/callback?key=1", "not a URL"),
    ] {
        let arguments = ["tencent", "setup", "--url", url, "--domain", DOMAIN, "--yes"];
        let rejected = bed.run(&arguments);
        assert!(
            rejected.code == Some(64) && rejected.stderr.contains(reason),
            "{url}: {rejected:?}"
        );
    }
    let url = bed.url();
    let unknown =
        bed.run(&["tencent", "setup", "--url", &url, "--domain", "no.example.com", "--yes"]);
    assert_eq!(unknown.code, Some(64), "{unknown:?}");
    assert!(unknown.stderr.contains("it has push.example.com"), "{unknown:?}");
    let rewritten = ["--url", "http://example.com/other", "--any-path", "--domain", DOMAIN];
    let accepted = bed.run(&[&["tencent", "setup"], &rewritten[..]].concat());
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    assert!(bed.tencent.state().templates.is_empty());
}

#[test]
fn status_names_each_difference_from_the_configuration() {
    let bed = Bed::new();
    fs::write(bed.keys(), "main mainKey0123456789\n").unwrap();
    let empty = bed.run(&["tencent", "status"]);
    assert_eq!(empty.code, Some(1), "{empty:?}");
    assert!(empty.stdout.contains("push.example.com has no rule"), "{empty:?}");

    {
        let mut state = bed.tencent.state();
        state.domains.push(("off.example.com".into(), false));
        let id = state.add_template(&json!({
            "TemplateName": "by-hand",
            "CallbackKey": "anotherKey0123456789",
            "StreamBeginNotifyUrl": bed.url(),
            "StreamEndNotifyUrl": "https://secret-host.example.com/hidden-path/x",
        }));
        state.rules.push((DOMAIN.into(), "live".into(), id));
        state.rules.push((DOMAIN.into(), "gone".into(), 1));
    }
    let wrong = bed.run(&["tencent", "status", "--json"]);
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    let report: Value = serde_json::from_str(&wrong.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let problems = report["problems"].to_string();
    for said in [
        "its key is none of those",
        "the URL of interrupt leads to https://secret-host.example.com",
        "push.example.com/gone names template 1, which does not exist",
    ] {
        assert!(problems.contains(said), "{said}: {problems}");
    }
    let text = wrong.stdout.clone();
    assert!(!text.contains("hidden-path") && !text.contains("anotherKey"), "{text}");
    assert!(!text.contains("off.example.com has no rule"), "a disabled domain is left out: {text}");
    assert_eq!(report["templates"][0]["here"], json!(["push"]));
    assert!(report["notes"].to_string().contains("no URL for record"), "{report}");
    let named = bed.run(&["tencent", "status", "--domain", "off.example.com"]);
    assert!(named.stdout.contains("off.example.com has no rule"), "{named:?}");

    let id = bed.tencent.state().templates[0]["TemplateId"].as_i64().unwrap();
    bed.tencent.state().templates[0].remove("CallbackKey");
    bed.tencent.state().rules.retain(|(_, _, template)| *template == id);
    let keyless = bed.run(&["tencent", "status"]);
    assert!(keyless.stdout.contains("it has no key"), "{keyless:?}");
}

const STATUS: [&str; 2] = ["tencent", "status"];

/// `command` exits with `code`, and its complaint has all of `texts`.
fn fails(command: &mut Command, code: i32, texts: &[&str]) {
    let finished = run(command);
    assert_eq!(finished.code, Some(code), "{finished:?}");
    for text in texts {
        assert!(finished.stderr.contains(text), "{text}: {finished:?}");
    }
}

#[test]
fn each_failure_is_reported_by_its_cause() {
    let bed = Bed::new();
    fs::write(bed.keys(), "main mainKey0123456789\n").unwrap();
    let with = |name: &str, value: &str| {
        let mut command = bed.command(&STATUS);
        command.env(name, value);
        command
    };
    let wrong = &mut with("TENCENTCLOUD_SECRET_ID", "AKIDnobody");
    fails(wrong, 64, &["the secret ID is not known", "TENCENTCLOUD_SECRET_ID"]);
    let wrong = &mut with("TENCENTCLOUD_SECRET_KEY", "another-key");
    fails(wrong, 64, &["the signature is not accepted", "TENCENTCLOUD_SECRET_KEY"]);
    let wrong = &mut with("TENCENTCLOUD_TOKEN", "old-token");
    fails(wrong, 64, &["the token is not accepted"]);
    bed.tencent.state().token = Some("old-token".into());
    let right = run(&mut with("TENCENTCLOUD_TOKEN", "old-token"));
    assert!(right.stdout.contains("push.example.com has no rule"), "{right:?}");
    bed.tencent.state().token = None;
    let half = &mut with("TENCENTCLOUD_SECRET_ID", "");
    fails(half, 64, &["TENCENTCLOUD_SECRET_ID is not: set both"]);
    let wrong = &mut with("TENCENTCLOUD_CREDENTIALS_FILE", "/nowhere");
    fails(wrong, 64, &["cannot read the credentials file /nowhere"]);
    let mut none = with("TENCENTCLOUD_SECRET_ID", "");
    fails(none.env("TENCENTCLOUD_SECRET_KEY", ""), 64, &["no credentials of Tencent Cloud"]);
    for ahead in [400, -400] {
        bed.tencent.state().clock_ahead = ahead;
        fails(&mut bed.command(&STATUS), 1, &["the signature has expired", "clock"]);
    }
    bed.tencent.state().clock_ahead = 0;
    bed.tencent.state().permitted = Some(vec!["DescribeLiveCallbackTemplates"]);
    let texts = ["permission denied", "live:DescribeLiveCallbackRules", "CAM", "docs/tencent.md"];
    fails(&mut bed.command(&STATUS), 1, &texts);
    bed.tencent.state().permitted = None;
    for _ in 0..3 {
        bed.tencent.inject("", Fault::Hang);
    }
    let impatient = [&STATUS[..], &["--timeout", "1s"]].concat();
    fails(&mut bed.command(&impatient), 1, &["no answer", "within 1s"]);
    // A slow attempt may have timed out before it got there.
    bed.tencent.state().faults.clear();
    bed.tencent.inject("", Fault::Status(404));
    let texts = ["is not one of Tencent Cloud's API", "a proxy's page", "endpoint"];
    fails(&mut bed.command(&STATUS), 1, &texts);
    for _ in 0..6 {
        bed.tencent.inject("", Fault::Code("RequestLimitExceeded"));
    }
    fails(&mut bed.command(&STATUS), 1, &["too many requests"]);
}

#[test]
fn an_endpoint_that_is_not_the_api_is_reported_by_its_cause() {
    let bed = Bed::new();
    fs::write(bed.keys(), "main mainKey0123456789\n").unwrap();
    let elsewhere = |url: &str, code, texts: &[&str]| {
        let mut command = livebridge(&[&STATUS[..], &["--endpoint", url]].concat());
        command.envs(bed.bridge.environment());
        command.env("TENCENTCLOUD_SECRET_ID", SECRET_ID).env("TENCENTCLOUD_SECRET_KEY", SECRET_KEY);
        fails(&mut command, code, texts);
    };
    elsewhere("http://live.tencentcloudapi.com", 64, &["plain HTTP", "https"]);
    elsewhere("nonsense", 64, &["not a URL with a host"]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    elsewhere(&format!("http://127.0.0.1:{port}"), 1, &["cannot reach", "refused"]);
    let plain = bed.tencent.endpoint().replace("http:", "https:");
    elsewhere(&plain, 1, &["cannot reach", "does it use TLS"]);
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", web.local_addr().unwrap());
    thread::spawn(move || {
        for mut client in web.incoming().map_while(Result::ok) {
            client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            let _ = client.read(&mut [0; 4096]);
        }
    });
    elsewhere(&url, 1, &["cannot reach", "it does not use TLS"]);
}

/// A certificate for `localhost` as a file of authorities, and the server that has it.
fn tls(dir: &TempDir) -> (PathBuf, ServerConfig) {
    let key = rcgen::KeyPair::generate().unwrap();
    let wanted = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let made = wanted.self_signed(&key).unwrap();
    let path = dir.path().join("authority.pem");
    fs::write(&path, made.pem()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![made.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    (path, config.unwrap())
}

/// A proxy that connects to where `CONNECT` says, and counts.
fn connect_proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let count = Arc::clone(&counted);
            thread::spawn(move || {
                let mut reader = BufReader::new(client.try_clone().unwrap());
                let mut first = String::new();
                reader.read_line(&mut first).unwrap();
                let target = first.split(' ').nth(1).unwrap().to_owned();
                assert!(first.starts_with("CONNECT "), "{first}");
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                count.fetch_add(1, Ordering::Relaxed);
                let mut client = client;
                client.write_all(b"HTTP/1.1 200 ok\r\n\r\n").unwrap();
                let mut server = TcpStream::connect(target).unwrap();
                let mut back = (server.try_clone().unwrap(), client);
                thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
                let _ = std::io::copy(&mut reader, &mut server);
            });
        }
    });
    (address, count)
}

#[test]
fn tls_certificates_are_verified_and_proxy_variables_are_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, config) = tls(&dir);
    let tencent = Tencent::start_tls(config);
    let command = || {
        let mut command = livebridge(&["tencent", "remove", "--endpoint", &tencent.endpoint()]);
        command.env("TENCENTCLOUD_SECRET_ID", SECRET_ID).env("TENCENTCLOUD_SECRET_KEY", SECRET_KEY);
        command
    };
    let trusted = run(command().env("SSL_CERT_FILE", &authority));
    assert_eq!(trusted.code, Some(0), "{trusted:?}");
    let another = tempfile::tempdir().unwrap();
    let (unrelated, _) = tls(&another);
    let untrusted = run(command().env("SSL_CERT_FILE", unrelated));
    assert_eq!(untrusted.code, Some(1), "{untrusted:?}");
    assert!(untrusted.stderr.contains("not of an authority"), "{untrusted:?}");
    assert_eq!(tencent.count("DescribeLiveCallbackTemplates"), 1, "nothing was sent");

    let (proxy, count) = connect_proxy();
    let through = |variable: &str| {
        let mut command = command();
        command.env("SSL_CERT_FILE", &authority).env(variable, format!("http://{proxy}"));
        command
    };
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let before = count.load(Ordering::Relaxed);
        let finished = run(&mut through(variable));
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(count.load(Ordering::Relaxed) > before, "{variable}");
    }
    let before = count.load(Ordering::Relaxed);
    let finished = run(through("HTTPS_PROXY").env("NO_PROXY", "localhost"));
    assert_eq!((finished.code, count.load(Ordering::Relaxed)), (Some(0), before), "{finished:?}");
    let finished =
        run(command().env("SSL_CERT_FILE", &authority).env("HTTPS_PROXY", "socks5://x:1"));
    assert_eq!(finished.code, Some(64), "{finished:?}");
    assert!(finished.stderr.contains("HTTPS_PROXY"), "{finished:?}");
}

#[test]
fn a_rotation_killed_at_any_step_is_completed_by_the_next_run() {
    let bed = Bed::new();
    bed.bridge.start();
    sets_up(&bed.setup(&["--yes"]));
    bed.wait_until_accepted();
    let old = bed.keys_text().split(' ').next().unwrap().to_owned();
    let rotate = ["tencent", "rotate-key", "--quiet", "3s"];
    let dry = bed.run(&rotate);
    assert!(dry.code == Some(0) && dry.stdout.contains("Nothing was changed"), "{dry:?}");
    assert_eq!(bed.keys_text().lines().count(), 1);
    // Killed when it has said what it does next, which is before, during or after it is done.
    for step in ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"] {
        let mut command = bed.command(&[&rotate[..], &["--yes"]].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let reached = lines.any(|line| line.starts_with(step));
        child.kill().unwrap();
        child.wait().unwrap();
        // A step that an earlier, killed run completed is not repeated.
        assert!(reached || ["2/6", "4/6", "6/6"].contains(&step), "{step}");
        assert_eq!(bed.send(1), Some(200), "callbacks are accepted after {step}");
    }
    let last = bed.run(&[&rotate[..], &["--yes"]].concat());
    assert_eq!(last.code, Some(0), "{last:?}");
    let keys = bed.keys_text();
    assert!(keys.lines().count() == 1 && !keys.contains(&old), "the old key is gone");
    let secret = keys.split_whitespace().last().unwrap();
    assert_eq!(bed.tencent.state().templates[0]["CallbackKey"], secret);
    let left: Vec<_> =
        fs::read_dir(bed.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["keys"], "no journal is left");
    bed.wait_until_accepted();
    let status = bed.run(&["tencent", "status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
}

#[test]
fn a_rotation_waits_while_the_old_key_is_in_use() {
    /// More than a pause of a busy machine between two callbacks.
    const QUIET: Duration = Duration::from_secs(8);
    let bed = Bed::new();
    bed.bridge.start();
    sets_up(&bed.setup(&["--yes"]));
    bed.wait_until_accepted();
    let old_secret = bed.keys_text().split_whitespace().last().unwrap().to_owned();
    let quiet = humantime::format_duration(QUIET).to_string();
    let rotate = ["tencent", "rotate-key", "--quiet", &quiet, "--yes"];
    let mut child = bed.command(&rotate).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("5/6")), "it waits");
    // Retries that were signed before the change, for longer than the key must be unused.
    let samples = Samples::new(CallbackKey::new(&old_secret));
    let waiting = Instant::now();
    while waiting.elapsed() < QUIET + Duration::from_secs(2) {
        let event = samples.event(EventType(1));
        let body = samples.delivery(event, livebridge::event::Timestamp::now());
        let answer = bed.bridge.post(&body).unwrap();
        assert_eq!(answer.status, 200, "the old key is still accepted: {answer:?}");
        assert!(bed.keys_text().contains(&old_secret));
        thread::sleep(Duration::from_secs(1));
    }
    // Across a restart, an instance forgets when the key was used.
    bed.bridge.kill();
    let restarted = Instant::now();
    bed.bridge.start();
    assert!(lines.any(|line| line.starts_with("Done")));
    assert!(restarted.elapsed() + Duration::from_secs(1) >= QUIET, "{:?}", restarted.elapsed());
    assert!(child.wait().unwrap().success());
    assert!(!bed.keys_text().contains(&old_secret));
}

#[test]
fn a_rotation_stops_where_it_would_lose_callbacks() {
    let bed = Bed::new();
    fs::write(bed.keys(), "mainKey0123456789\n").unwrap();
    let rotate = ["tencent", "rotate-key", "--load-timeout", "1s", "--quiet", "0s", "--yes"];
    let missing = bed.run(&rotate);
    assert!(missing.code == Some(64) && missing.stderr.contains("setup"), "{missing:?}");
    sets_up(&bed.setup(&["--yes"]));
    let nameless = bed.run(&rotate);
    assert!(nameless.code == Some(64) && nameless.stderr.contains("NAME KEY"), "{nameless:?}");
    fs::write(bed.keys(), "main mainKey0123456789\n").unwrap();
    let stopped = bed.run(&rotate);
    assert_eq!(stopped.code, Some(1), "{stopped:?}");
    assert!(stopped.stderr.contains("does not answer"), "no instance runs: {stopped:?}");
    assert_eq!(bed.tencent.state().templates[0]["CallbackKey"], "mainKey0123456789");
    bed.bridge.start();
    bed.tencent.state().add_template(&json!({
        "TemplateName": "other", "StreamBeginNotifyUrl": "http://192.0.2.1/",
        "CallbackKey": "mainKey0123456789",
    }));
    let stopped = bed.run(&rotate);
    assert!(
        stopped.code == Some(1) && stopped.stderr.contains("has the old key too"),
        "{stopped:?}"
    );
    assert!(bed.keys_text().contains("main mainKey0123456789"));
    bed.tencent.state().templates.pop();
    assert_eq!(bed.run(&rotate).code, Some(0));
    assert!(!bed.keys_text().contains("main "));
}

#[test]
fn check_examines_the_account_if_and_only_if_there_are_credentials() {
    let bed = Bed::new();
    fs::write(bed.keys(), "main mainKey0123456789\n").unwrap();
    let without = bed.bridge.run(&["check"]);
    assert!(!without.stdout.contains("Tencent"), "{without:?}");
    let before = bed.run(&["check"]);
    assert_eq!(before.code, Some(1), "{before:?}");
    assert!(
        before.stdout.contains("FAIL  Tencent      push.example.com has no rule"),
        "{before:?}"
    );
    sets_up(&bed.setup(&["--yes"]));
    let after = bed.run(&["check"]);
    assert_eq!(after.code, Some(69), "only Kafka is missing: {after:?}");
    assert!(
        after.stdout.contains("ok    Tencent      the callbacks of 1 rules come here"),
        "{after:?}"
    );
    let offline = bed.run(&["check", "--offline"]);
    assert!(!offline.stdout.contains("Tencent"), "{offline:?}");
}

#[test]
fn the_documented_permissions_suffice() {
    let document = include_str!("../../docs/tencent.md");
    let (_, table) = document.split_once("| command | actions |").unwrap();
    let allowed = |command: &str| -> Vec<&'static str> {
        let row = table.lines().find(|row| row.contains(&format!("`{command}`"))).unwrap();
        let actions = row.split('|').nth(2).unwrap();
        actions.split('`').skip(1).step_by(2).collect()
    };
    let bed = Bed::new();
    bed.bridge.start();
    let permit = |command: &str| bed.tencent.state().permitted = Some(allowed(command));
    permit("tencent setup");
    sets_up(&bed.setup(&["--yes"]));
    sets_up(&bed.setup(&["--events", "push", "--yes"]));
    bed.tencent.state().rules[0].2 = 1;
    permit("tencent setup --take-over");
    sets_up(&bed.setup(&["--take-over", "--yes"]));
    permit("tencent status");
    assert_eq!(bed.run(&["tencent", "status"]).code, Some(0));
    permit("tencent rotate-key");
    let rotated = bed.run(&["tencent", "rotate-key", "--quiet", "0s", "--yes"]);
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    permit("tencent remove");
    let removed = bed.run(&["tencent", "remove", "--yes"]);
    assert!(removed.code == Some(0) && bed.tencent.state().templates.is_empty(), "{removed:?}");
}
