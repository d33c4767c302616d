//! Two threads at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Runs both at the same time, each on a thread of its own; from the first start to the last end, by the clock.
pub(crate) fn both(one: impl FnOnce() + Send, other: impl FnOnce() + Send) -> Duration {
    let ready = AtomicUsize::new(0);
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| span(&ready, one));
        let other = scope.spawn(|| span(&ready, other));
        (one.join().expect("no panic"), other.join().expect("no panic"))
    });
    one.1.max(other.1) - one.0.min(other.0)
}

/// Waits until both are ready, then works.
fn span(ready: &AtomicUsize, work: impl FnOnce()) -> (Instant, Instant) {
    ready.fetch_add(1, Ordering::AcqRel);
    while ready.load(Ordering::Acquire) < 2 {
        std::hint::spin_loop();
    }
    let start = Instant::now();
    work();
    (start, Instant::now())
}
