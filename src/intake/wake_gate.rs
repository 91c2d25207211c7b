//! Polls a future only after its waker was called, beside a future that is polled often.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls `future` at first and after each call of its waker: every poll of a pending notification
/// takes locks, and a connection's task is polled several times for each request.
///
/// Only one task may poll it.
pub(super) struct PolledOnWake<'a, F> {
    future: Pin<&'a mut F>,
    waking: Option<Arc<Waking>>,
}

struct Waking {
    is_due: AtomicBool,
    task: Waker,
}

impl Wake for Waking {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the task is woken, so that its next poll sees it.
        self.is_due.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<'a, F> PolledOnWake<'a, F> {
    pub(super) fn new(future: Pin<&'a mut F>) -> Self {
        Self { future, waking: None }
    }
}

impl<F: Future> Future for PolledOnWake<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let new = || Arc::new(Waking { is_due: AtomicBool::new(true), task: cx.waker().clone() });
        let waking = self.waking.get_or_insert_with(new);
        // Read first: most polls need not write.
        if !waking.is_due.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before the poll, so that a wake during the poll is not lost.
        waking.is_due.swap(false, Ordering::AcqRel);
        let waker = Waker::from(Arc::clone(waking));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn is_polled_at_first_and_after_each_of_its_wakings() {
        let notify = Notify::new();
        let mut polls = 0;
        let notified = async {
            notify.notified().await;
            notify.notified().await;
        };
        let mut notified = pin!(notified);
        let counted = poll_fn(|cx| {
            polls += 1;
            notified.as_mut().poll(cx)
        });
        let mut counted = pin!(counted);
        let mut gated = PolledOnWake::new(counted.as_mut());
        let poll_often = async |gated: &mut PolledOnWake<'_, _>| {
            for _ in 0..100 {
                let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *gated).poll(cx)));
                assert!(polled.await.is_pending());
            }
        };
        poll_often(&mut gated).await;
        notify.notify_one();
        poll_often(&mut gated).await;
        notify.notify_one();
        gated.await;
        assert_eq!(polls, 3);
    }
}
