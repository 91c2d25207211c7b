//! Handles one request: checks, body, verification, log, response.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::activity::{Activity, Linger, RequestOutcome};
use super::rejection::{Rejection, response, set_content_type};
use super::rejection_log::Example;
use super::{IntakeContext, IntakePolicy, body};
use crate::event::{Timestamp, type_name};
use crate::metrics;
use crate::status_history;

/// The connection of a request.
#[derive(Clone, Copy)]
pub(super) struct ConnectionContext<'a> {
    /// The address of its client: the peer, or the address in a PROXY header; `None` if the header
    /// says `UNKNOWN`.
    pub(super) peer: Option<IpAddr>,
    pub(super) activity: &'a Activity,
    /// The policy under which the connection was accepted.
    pub(super) policy: &'a Arc<IntakePolicy>,
}

pub(super) async fn answer(
    shared: &IntakeContext,
    context: ConnectionContext<'_>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let activity = context.activity;
    let started = activity.begin_request();
    let (mut response, outcome) = match health(shared, &request) {
        Some(response) => (response, RequestOutcome::HealthCheck),
        None => handle(shared, context, started, request).await,
    };
    let last = activity.record_response(outcome);
    if let Some(reason) = last {
        metrics::ended(reason);
    }
    // The policy under which the connection was accepted has been replaced.
    let outdated = !shared.policy.is(context.policy);
    if last.is_some() || outdated || shared.health.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if response.headers().contains_key(header::CONNECTION) {
        let answered = response.status();
        // A client that timed out gets the short linger.
        let unread = outcome == RequestOutcome::Rejected && answered != StatusCode::REQUEST_TIMEOUT;
        activity.set_linger(if unread { Linger::Long } else { Linger::Short });
    }
    Ok(response)
}

/// Answers `/healthz` and `/readyz`, for balancers that check the port they send to. The text tells
/// no more than the status, so no permission is needed.
fn health(shared: &IntakeContext, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return None;
    }
    let (healthy, text) = match request.uri().path() {
        "/healthz" if shared.health.stuck().is_none() => (true, "alive"),
        "/healthz" => (false, "stuck"),
        "/readyz" if shared.health.ready().is_ok() => (true, "ready"),
        "/readyz" => (false, "not ready"),
        _ => return None,
    };
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = serde_json::json!({ "code": status.as_u16(), "message": text });
    Some(response(status, Bytes::from(text.to_string())))
}

async fn handle(
    shared: &IntakeContext,
    context: ConnectionContext<'_>,
    started: Instant,
    request: Request<Incoming>,
) -> (Response<Full<Bytes>>, RequestOutcome) {
    let (head, body) = request.into_parts();
    match receive(shared, context, &head, body).await {
        Ok(type_name) => {
            metrics::accepted(type_name, started.elapsed());
            shared.rejections.record_accepted();
            (ok_response(head.headers), RequestOutcome::Accepted)
        }
        Err((rejection, address)) => {
            let response = rejection.response();
            if is_proxy_health_check(context, &head) {
                return (response, RequestOutcome::HealthCheck);
            }
            let (status, reason) = (rejection.status(), rejection.reason());
            metrics::rejected(reason);
            status_history::rejected(status.as_u16(), reason, || rejection.to_string());
            let (method, path) = (head.method.as_str(), head.uri.path());
            let example = Example::new(status, reason, method, path, address);
            shared.rejections.record_rejected(example);
            (response, RequestOutcome::Rejected)
        }
    }
}

/// The response to an accepted callback. It reuses the map of the request's `headers`, and hyper
/// reuses that of the response for the next request, so that no request allocates one.
fn ok_response(mut headers: HeaderMap) -> Response<Full<Bytes>> {
    headers.clear();
    let mut response = Response::new(Full::new(Bytes::from_static(br#"{"code":0}"#)));
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = headers;
    set_content_type(&mut response);
    response
}

/// Whether a trusted proxy sent this request itself, not for a client: a health check, which does
/// not count as a rejected callback.
fn is_proxy_health_check(context: ConnectionContext<'_>, head: &Parts) -> bool {
    let trusted = context.peer.is_some_and(|peer| context.policy.access().is_trusted(peer));
    let is_forwarded = head.headers.contains_key("x-forwarded-for");
    trusted && !is_forwarded && [Method::GET, Method::HEAD].contains(&head.method)
}

/// Accepts one callback and returns the name of its type once it is durable (I1); otherwise the
/// rejection and the client's address.
async fn receive(
    shared: &IntakeContext,
    context: ConnectionContext<'_>,
    head: &Parts,
    body: Incoming,
) -> Result<&'static str, (Rejection, Option<IpAddr>)> {
    let (address, checked) = check(shared, context, head);
    let accepted = async {
        checked?;
        let body = body::read(shared, context.activity, body).await?;
        store(shared, context, &body).await
    };
    accepted.await.map_err(|rejection| (rejection, address))
}

/// The client's address, and whether the request is rejected before its body is read.
fn check(
    shared: &IntakeContext,
    context: ConnectionContext<'_>,
    head: &Parts,
) -> (Option<IpAddr>, Result<(), Rejection>) {
    let policy = shared.policy.get();
    let address = policy.client_address(context.peer, &head.headers);
    let checked = policy
        .check_request(address, &head.headers)
        .and_then(|()| check_target(shared, head))
        .and_then(|()| check_encoding(&head.headers));
    (address, checked)
}

/// Whether the request is a callback, by path and method.
fn check_target(shared: &IntakeContext, head: &Parts) -> Result<(), Rejection> {
    let below = head.uri.path().strip_prefix(&*shared.config.path);
    let is_callback_path = below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match (is_callback_path, head.method == Method::POST) {
        (true, true) => Ok(()),
        (true, false) => Err(Rejection::Method),
        (false, true) => Err(Rejection::Path),
        (false, false) => Err(Rejection::NotFound),
    }
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Rejection> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let is_plain = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    };
    let mut codings = codings.flat_map(|codings| codings.split(|byte| *byte == b','));
    if codings.all(is_plain) { Ok(()) } else { Err(Rejection::ContentEncoding) }
}

/// Verifies a callback and waits until it is durable.
async fn store(
    shared: &IntakeContext,
    context: ConnectionContext<'_>,
    body: &Bytes,
) -> Result<&'static str, Rejection> {
    context.activity.begin_storing();
    let record = shared.policy.get().verify(body, Timestamp::now())?;
    let type_name = type_name(record.event_type);
    let sample = status_history::start(&record);
    let appended = context.activity.in_time(shared.appends.append(record)).await;
    // After a time-out the record may still become durable; the sender's retry is then absorbed.
    appended.ok_or(Rejection::Deadline)??;
    if let Some(sample) = sample {
        sample.finish();
    }
    Ok(type_name)
}
