//! Shuttle: random interleavings of a case, by two schedulers, each failure with a schedule to replay.
//!
//! * `STAGE2_SOAK_SECONDS=n` goes on for n seconds with each scheduler, from fresh seeds.
//! * `STAGE2_REPLAY=schedule` runs one execution again, the one that a failure printed; it may also
//!   name a file with the schedule. Name the test as well: a schedule belongs to one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

use crate::outcome;

/// Preemptions that the PCT scheduler places.
const DEPTH: usize = 3;

/// How a case is explored, and what its exploration must have come to.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// What the test is called.
    pub name: &'static str,
    /// Executions with each scheduler, if not for a time.
    pub executions: usize,
    /// Outcomes that must be reached.
    pub outcomes: &'static [&'static str],
}

/// Says where the seed was, when a run fails.
struct Blame {
    name: &'static str,
    scheduler: &'static str,
    seed: u64,
}

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { name, scheduler, seed } = self;
            eprintln!("shuttle: {name} failed with scheduler {scheduler}, seed {seed:#x}");
            eprintln!(
                "shuttle: to replay: STAGE2_REPLAY=<the failing schedule> and this test's name"
            );
        }
    }
}

impl Model {
    /// Explores `case` and prints a line for each scheduler.
    ///
    /// # Panics
    /// When an execution does, and when the exploration fell short.
    pub fn check(&self, case: impl Fn() + Send + Sync + 'static) {
        let case = Arc::new(case);
        if let Ok(schedule) = std::env::var("STAGE2_REPLAY") {
            let schedule = std::fs::read_to_string(&schedule).unwrap_or(schedule);
            let scheduler = ReplayScheduler::new_from_encoded(schedule.trim());
            let ran = Runner::new(scheduler, config()).run(move || case());
            return println!("shuttle: {}: {ran} execution replayed", self.name);
        }
        let time = std::env::var("STAGE2_SOAK_SECONDS")
            .ok()
            .map(|n| Duration::from_secs(n.parse().expect("STAGE2_SOAK_SECONDS is a number")));
        // A fixed seed where the run is bounded, so that `test` says the same twice.
        let seed = if time.is_some() { clock() } else { 0x5eed };
        outcome::reset();
        let count = self.executions;
        let random = |seed| RandomScheduler::new_from_seed(seed, count);
        self.run("random", seed, random, time, &case);
        let pct = |seed| PctScheduler::new_from_seed(seed, DEPTH, count);
        self.run("pct", seed, pct, time, &case);
        println!("shuttle: {}: outcomes: {}", self.name, outcome::settle(self.outcomes));
    }

    /// One bounded run, or as many as there is time for, each from the next seed.
    fn run<S: Scheduler + 'static>(
        &self,
        name: &'static str,
        first: u64,
        scheduler: impl Fn(u64) -> S,
        time: Option<Duration>,
        case: &Arc<impl Fn() + Send + Sync + 'static>,
    ) {
        let (start, steps) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let (mut executions, mut seed) = (0, first);
        loop {
            let blame = Blame { name: self.name, scheduler: name, seed };
            let (case, count) = (Arc::clone(case), Arc::clone(&steps));
            let ran = Runner::new(scheduler(seed), config()).run(move || {
                case();
                count.fetch_add(shuttle::current::context_switches() as u64, Ordering::Relaxed);
            });
            drop(blame);
            assert_eq!(ran, self.executions, "{}: too few executions", self.name);
            executions += ran;
            if time.is_none_or(|time| start.elapsed() >= time) {
                break;
            }
            seed = seed.wrapping_add(1);
        }
        println!(
            "shuttle: {}: {name} scheduler, from seed {first:#x}: {executions} executions, {} steps, {:.1} s",
            self.name,
            steps.load(Ordering::Relaxed),
            start.elapsed().as_secs_f64(),
        );
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::Print;
    // The first panic is the finding: what the other threads would do after it is not.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    // It says that orders are not modelled: loom's part.
    config.silence_warnings = true;
    config
}

fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}
