//! The body of one request, within the limits for one body and for all bodies in transit.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::Shared;
use super::activity::Activity;
use super::rejection::Rejection;

/// Bytes of bodies of which a part has arrived, over all connections. Of each body,
/// [`BODY_BYTES_FREE`] do not count.
const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A body of this size is accepted however many large ones are in transit: callbacks are smaller,
/// and it takes no more memory than its connection does.
const BODY_BYTES_FREE: usize = 16 * 1024;

/// Reads the whole body.
pub(super) async fn read(
    shared: &Shared,
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

/// A share of [`BODIES_BYTES_MAX`], returned on drop. It grows as bytes arrive: a length that is
/// only announced takes nothing from others.
struct Reservation<'a> {
    total: &'a AtomicUsize,
    bytes: usize,
}

impl Reservation<'_> {
    /// Whether the limit allows this many bytes.
    fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes - std::mem::replace(&mut self.bytes, bytes);
        more == 0 || self.total.fetch_add(more, Ordering::Relaxed) + more <= BODIES_BYTES_MAX
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
