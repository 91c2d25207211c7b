//! A fake of Tencent Cloud's API 3.0 for Cloud Live: verifies each signature, enforces the documented
//! limits, and injects faults. It also sends callbacks by its templates and rules, as the real service
//! does.
//!
//! It shares no code with `src/tencent`: signature, time forms and paging are written here once more.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod actions;
mod http;
mod signature;

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use serde_json::{Map, Value, json};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

pub use actions::{Record, Stream};

/// The key pair of the fake's account.
pub const SECRET_ID: &str = "AKIDfakeaccount0123456789";
pub const SECRET_KEY: &str = "fake-secret-key-0123456789";

/// Requests a second that the documents state for each action; 20 where they state none.
const RATES: [(&str, usize); 10] = [
    ("CreateLiveCallbackTemplate", 200),
    ("ModifyLiveCallbackTemplate", 200),
    ("DeleteLiveCallbackTemplate", 20),
    ("DescribeLiveCallbackTemplates", 20),
    ("CreateLiveCallbackRule", 200),
    ("DeleteLiveCallbackRule", 20),
    ("DescribeLiveCallbackRules", 500),
    ("DescribeLiveDomains", 20),
    ("DescribeLiveStreamEventList", 300),
    ("DescribeCallbackRecordsList", 20),
];

/// What happens to a request instead of a plain answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This error code, with HTTP 200.
    Code(&'static str),
    /// This status, with a page of a proxy.
    Status(u16),
    /// No answer, and nothing done.
    Hang,
    /// The connection is closed, and nothing done.
    Close,
    /// It is done, and the connection is closed without an answer.
    CloseAfter,
}

/// What the fake holds.
#[derive(Debug)]
pub struct State {
    /// The session token that requests must have, if any.
    pub token: Option<String>,
    /// The only actions that the account may call, if limited.
    pub permitted: Option<Vec<&'static str>>,
    /// Seconds by which its clock is ahead.
    pub clock_ahead: i64,
    /// Whether answers have `RecordStatusNotifyUrl`, which some versions of the reference omit.
    pub reports_record_status: bool,
    pub templates: Vec<Map<String, Value>>,
    /// Domain, app, template.
    pub rules: Vec<(String, String, i64)>,
    /// Push domains, and whether they are enabled.
    pub domains: Vec<(String, bool)>,
    pub streams: Vec<Stream>,
    pub records: Vec<Record>,
    /// Faults of the next requests of an action; of any action if it is empty.
    pub faults: VecDeque<(&'static str, Fault)>,
    /// The requests that were authenticated: action and parameters.
    pub calls: Vec<(String, Value)>,
    next_template: i64,
    /// When the requests of the last second arrived.
    arrivals: BTreeMap<String, VecDeque<Instant>>,
}

/// The server; ends with its value.
#[derive(Debug)]
pub struct Tencent {
    address: SocketAddr,
    is_tls: bool,
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
}

impl Tencent {
    /// An empty account, over plain HTTP.
    pub fn start() -> Self {
        Self::serve(None)
    }

    /// The same over TLS.
    pub fn start_tls(config: ServerConfig) -> Self {
        Self::serve(Some(Arc::new(config)))
    }

    fn serve(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            is_tls: tls.is_some(),
            state: Arc::new(Mutex::new(State {
                token: None,
                permitted: None,
                clock_ahead: 0,
                reports_record_status: true,
                templates: Vec::new(),
                rules: Vec::new(),
                domains: Vec::new(),
                streams: Vec::new(),
                records: Vec::new(),
                faults: VecDeque::new(),
                calls: Vec::new(),
                next_template: 1000,
                arrivals: BTreeMap::new(),
            })),
            ends: Arc::default(),
        };
        let (state, ends) = (Arc::clone(&server.state), Arc::clone(&server.ends));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), state, tls) = (stream, Arc::clone(&state), tls.clone()) else {
                    continue;
                };
                thread::spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
                    stream.set_nodelay(true).unwrap();
                    match tls {
                        None => answer_all(stream, &state),
                        Some(tls) => {
                            let session = ServerConnection::new(tls).unwrap();
                            answer_all(StreamOwned::new(session, stream), &state);
                        }
                    }
                });
            }
        });
        server
    }

    /// The value of `--endpoint`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// Its state, to prepare and to examine.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets the next request of `action` (of any, if empty) meet `fault`.
    pub fn inject(&self, action: &'static str, fault: Fault) {
        self.state().faults.push_back((action, fault));
    }

    /// How many requests of an action were authenticated.
    pub fn count(&self, action: &str) -> usize {
        self.state().calls.iter().filter(|(name, _)| name == action).count()
    }

    /// Sends `body` as the callback of a stream on `domain` and `app`, as the rules and templates say:
    /// signed with the template's key, to the URL of the event's type. Returns the status of the
    /// answer; `None` when no rule or URL is set, or nothing answers.
    pub fn send_callback(
        &self,
        domain: &str,
        app: &str,
        mut body: Map<String, Value>,
    ) -> Option<u16> {
        let (url, key) = {
            let state = self.state();
            let of_app = |wanted: &str| {
                let rule = state.rules.iter().find(|(d, a, _)| d == domain && a == wanted);
                rule.map(|(_, _, template)| *template)
            };
            // The rule of the app counts before the one of the domain.
            let number = of_app(app).or_else(|| of_app(""))?;
            let template = state.templates.iter().find(|t| t["TemplateId"] == number)?;
            let member = url_member(body["event_type"].as_i64()?)?;
            let url = template.get(member)?.as_str().filter(|url| !url.is_empty())?.to_owned();
            (url, template.get("CallbackKey").and_then(Value::as_str).unwrap_or("").to_owned())
        };
        if !key.is_empty() {
            let t = unix_seconds() + 600;
            let sign = signature::hex(&Md5::digest(format!("{key}{t}")));
            body.insert("t".into(), t.into());
            body.insert("sign".into(), sign.into());
        }
        http::post(&url, &Value::Object(body).to_string())
    }
}

impl Drop for Tencent {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// The template's member with the URL for an event type.
fn url_member(event_type: i64) -> Option<&'static str> {
    Some(match event_type {
        0 => "StreamEndNotifyUrl",
        1 => "StreamBeginNotifyUrl",
        100 => "RecordNotifyUrl",
        200 => "SnapshotNotifyUrl",
        315 => "AudioAuditNotifyUrl",
        317 => "PornCensorshipNotifyUrl",
        321 => "PushExceptionNotifyUrl",
        332 => "RecordStatusNotifyUrl",
        341 => "RecordExceptionNotifyUrl",
        _ => return None,
    })
}

fn unix_seconds() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(elapsed.as_secs()).unwrap()
}

/// Answers the requests of a connection until it is closed.
fn answer_all(stream: impl Read + Write, state: &Mutex<State>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = http::Request::read(&mut stream) {
        let answer = answer(&request, state);
        let (status, body) = match answer {
            Answer::Json(value) => (200, value.to_string()),
            Answer::Status(status) => (status, "<html>a proxy's page</html>".to_owned()),
            Answer::None => {
                // Longer than any time-out of a test, shorter than the test.
                thread::sleep(Duration::from_secs(20));
                return;
            }
            Answer::Close => return,
        };
        if !http::respond(stream.get_mut(), status, &body) {
            return;
        }
    }
}

enum Answer {
    Json(Value),
    Status(u16),
    None,
    Close,
}

/// An error code with its message.
type Failure = (&'static str, String);

fn answer(request: &http::Request, state: &Mutex<State>) -> Answer {
    let mut state = state.lock().unwrap();
    let action = request.header("x-tc-action").unwrap_or_default().to_owned();
    let at = state.faults.iter().position(|(of, _)| of.is_empty() || *of == action);
    let fault = at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault);
    match fault {
        Some(Fault::Hang) => return Answer::None,
        Some(Fault::Close) => return Answer::Close,
        Some(Fault::Status(status)) => return Answer::Status(status),
        Some(Fault::Code(code)) => {
            return Answer::Json(failure((code, "injected by the test".to_owned())));
        }
        Some(Fault::CloseAfter) | None => {}
    }
    let outcome = state.handle(&action, request);
    if fault.is_some() {
        return Answer::Close;
    }
    Answer::Json(match outcome {
        Ok(mut fields) => {
            fields.insert("RequestId".into(), "fake-request".into());
            json!({ "Response": fields })
        }
        Err(error) => failure(error),
    })
}

fn failure((code, message): Failure) -> Value {
    json!({ "Response": {
        "Error": { "Code": code, "Message": message }, "RequestId": "fake-request"
    } })
}

impl State {
    fn handle(
        &mut self,
        action: &str,
        request: &http::Request,
    ) -> Result<Map<String, Value>, Failure> {
        let rate = RATES.iter().find(|(name, _)| *name == action);
        let Some(&(_, rate)) = rate else {
            return Err(("InvalidAction", format!("there is no action {action:?}")));
        };
        signature::verify(request, self.token.as_deref(), unix_seconds() + self.clock_ahead)?;
        if request.header("x-tc-version") != Some("2018-08-01") {
            return Err(("NoSuchVersion", "wrong version".into()));
        }
        let arrivals = self.arrivals.entry(action.to_owned()).or_default();
        let now = Instant::now();
        arrivals.retain(|at| now - *at < Duration::from_secs(1));
        if arrivals.len() >= rate {
            return Err(("RequestLimitExceeded", format!("more than {rate} a second")));
        }
        arrivals.push_back(now);
        if self.permitted.as_ref().is_some_and(|permitted| !permitted.contains(&action)) {
            return Err((
                "AuthFailure.UnauthorizedOperation",
                format!("you are not authorized to perform operation (live:{action})"),
            ));
        }
        let parameters: Value = serde_json::from_slice(&request.body)
            .map_err(|_| ("InvalidRequest", "the body is not JSON".to_owned()))?;
        let Value::Object(fields) = parameters.clone() else {
            return Err(("InvalidRequest", "the body is no object".to_owned()));
        };
        self.calls.push((action.to_owned(), parameters));
        self.perform(action, &fields)
    }
}
