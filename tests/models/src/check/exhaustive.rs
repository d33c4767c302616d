//! Loom: every interleaving of a case, and every value that a load may return.
//!
//! An execution that fails fails again: the exploration is deterministic. `LOOM_LOG=trace` prints its
//! steps, `LOOM_LOCATION=1` where the accesses are.
//!
//! `STAGE2_SOAK_SECONDS=n` drops the bounds and gives each case n seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::outcome;

/// How a case is explored, and what its exploration must have come to.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// What the test is called.
    pub name: &'static str,
    /// Switches away from a thread that could go on, per execution; `None` is all that there are.
    pub preemptions: Option<usize>,
    /// Fewer executions than this, and the case has lost its point.
    pub at_least: u64,
    /// Outcomes that must be reached.
    pub outcomes: &'static [&'static str],
}

/// Names the execution that panicked.
struct Blame(&'static str, Arc<AtomicU64>);

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let execution = self.1.load(Ordering::Relaxed);
            eprintln!("loom: {} failed in execution {execution}; the same one fails again", self.0);
        }
    }
}

impl Model {
    /// Explores `case` and prints one line.
    ///
    /// # Panics
    /// When an execution does, and when the exploration fell short.
    pub fn check(&self, case: impl Fn() + Sync + Send + 'static) {
        let soak = std::env::var("STAGE2_SOAK_SECONDS")
            .ok()
            .map(|n| Duration::from_secs(n.parse().expect("STAGE2_SOAK_SECONDS is a number")));
        outcome::reset();
        let executions = Arc::new(AtomicU64::new(0));
        let blame = Blame(self.name, Arc::clone(&executions));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = if soak.is_some() { None } else { self.preemptions };
        builder.max_branches = 10_000;
        builder.max_duration = soak;
        builder.checkpoint_interval = 1000;
        let start = Instant::now();
        let counter = Arc::clone(&executions);
        builder.check(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            case();
        });
        drop(blame);
        let (count, took) = (executions.load(Ordering::Relaxed), start.elapsed());
        let extent = match builder.preemption_bound {
            _ if soak.is_some_and(|time| took >= time) => "stopped by the clock".to_owned(),
            None => "all there are".to_owned(),
            Some(bound) => format!("all with at most {bound} preemptions"),
        };
        println!(
            "loom: {}: {count} executions, {extent}, {:.1} s: {}",
            self.name,
            took.as_secs_f64(),
            outcome::settle(self.outcomes)
        );
        assert!(count >= self.at_least, "{}: only {count} executions", self.name);
    }
}
