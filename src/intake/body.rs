//! Reads the body of one request, within the limits for one body and for all partly received ones.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::IntakeContext;
use super::activity::Activity;
use super::rejection::Rejection;

/// Bytes of partly received bodies, over all connections. The first [`BODY_BYTES_FREE`] of each do
/// not count.
pub(super) const PARTIAL_BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A body of this size is accepted even at the limit: callbacks are smaller, and it takes no more
/// memory than its connection does.
const BODY_BYTES_FREE: usize = 16 * 1024;

/// Reads the whole body.
pub(super) async fn read(
    shared: &IntakeContext,
    activity: &Activity,
    body: Incoming,
) -> Result<Bytes, Rejection> {
    let max = shared.config.max_body;
    if body.size_hint().lower() > max as u64 {
        return Err(Rejection::TooLarge { max });
    }
    let body = activity.in_time(read_frames(body, max, &shared.body_bytes)).await;
    body.unwrap_or(Err(Rejection::BodyIncomplete))
}

async fn read_frames(
    mut body: Incoming,
    max: usize,
    total: &AtomicUsize,
) -> Result<Bytes, Rejection> {
    let mut whole = BytesMut::new();
    let mut reservation = Reservation { total, bytes: 0 };
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Rejection::BodyIncomplete)?.into_data() else {
            continue;
        };
        if whole.len() + data.len() > max {
            return Err(Rejection::TooLarge { max });
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
        if !reservation.grow_to(whole.len().saturating_sub(BODY_BYTES_FREE)) {
            return Err(Rejection::Overloaded);
        }
    }
    Ok(whole.freeze())
}

/// A share of [`PARTIAL_BODIES_BYTES_MAX`], released on drop. It grows as bytes arrive, so that a
/// large `Content-Length` alone reserves nothing.
struct Reservation<'a> {
    total: &'a AtomicUsize,
    bytes: usize,
}

impl Reservation<'_> {
    /// Grows to this many bytes; false if the limit does not allow it.
    fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes - std::mem::replace(&mut self.bytes, bytes);
        more == 0
            || self.total.fetch_add(more, Ordering::Relaxed) + more <= PARTIAL_BODIES_BYTES_MAX
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
