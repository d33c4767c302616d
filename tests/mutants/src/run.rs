//! Runs tests against mutants, each in a process of its own, and judges how they end.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hypctl::process::Leashed;
use serde::Serialize;

use crate::build::Programs;
use crate::registry::{Killer, Mutant, Registry};
use crate::stop::Stop;
use crate::{REACHED, SWITCH};

/// How a mutant fared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The test failed with the stated text.
    Killed,
    /// The test passed.
    Survived {
        /// Whether it executed the seeded line at all.
        reached: bool,
    },
    /// The test did not end in time. That is no kill: nobody is told what is wrong.
    Hung,
    /// The test failed, but not with the stated text, or without executing the seeded line.
    FailedElsewhere,
    /// The process died of something else than a failed test.
    Crashed,
}

impl Outcome {
    /// The word for the table.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Survived { reached: true } => "SURVIVED",
            Self::Survived { reached: false } => "SURVIVED, never executed",
            Self::Hung => "SURVIVED, hung",
            Self::FailedElsewhere => "SURVIVED, failed elsewhere",
            Self::Crashed => "SURVIVED, crashed",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Trial<'r> {
    /// The mutant.
    pub mutant: &'r Mutant,
    /// Its test.
    pub killer: &'r Killer,
    /// How it fared.
    pub outcome: Outcome,
    /// How long the test took.
    pub time: Duration,
    /// What the first panic said.
    pub said: String,
    /// All that the test put out.
    pub output: String,
}

/// Why mutants could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A program cannot be started.
    #[error("{program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A test fails, or is not there, without any defect: it can prove nothing.
    #[error("without any defect, {test} {what}:\n{output}")]
    Baseline {
        /// The test.
        test: String,
        /// What it did.
        what: &'static str,
        /// What it said.
        output: String,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

/// What limits a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processes at once.
    pub jobs: usize,
    /// How long a test may take.
    pub time: Duration,
}

/// What one process did.
#[derive(Debug)]
struct Ended {
    /// `None`: it was stopped, because its time was over.
    status: Option<ExitStatus>,
    time: Duration,
    out: String,
    err: String,
}

/// Bytes of a process's output that are kept; a test that loops may print for ever.
const KEPT: usize = 1 << 20;

/// Characters of a panic's text that a report shows.
const SHOWN: usize = 200;

/// A test harness ends with this code when a test failed.
const FAILED: i32 = 101;

/// Runs one test with mutant `number` on, or none.
fn execute(
    program: &Path,
    test: &str,
    number: Option<usize>,
    limit: Duration,
    stop: &Stop,
) -> Result<Ended, RunError> {
    let fail = |source| RunError::Start { program: program.display().to_string(), source };
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    // The same random numbers each time, and no trace of failures that are wanted.
    command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    command.env("RUST_BACKTRACE", "0").env_remove(SWITCH);
    if let Some(number) = number {
        command.env(SWITCH, number.to_string());
    }
    let start = Instant::now();
    let mut process = Leashed::spawn(&mut command).map_err(fail)?;
    let Some((stdin, stdout, stderr)) = process.take_pipes() else {
        return Err(fail(io::ErrorKind::BrokenPipe.into()));
    };
    drop(stdin);
    let (out, err) = (keep(stdout), keep(stderr));
    let status = loop {
        if stop.requested().is_some() {
            return Err(RunError::Interrupted);
        }
        let status = process.wait(Duration::from_millis(50)).map_err(fail)?;
        if status.is_some() {
            break status;
        }
        if start.elapsed() > limit {
            process.kill();
            break None;
        }
    };
    let time = start.elapsed();
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Ended { status, time, out: text(out), err: text(err) })
}

fn keep(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = pipe.read(&mut piece) {
            let room = KEPT.saturating_sub(text.len()).min(count);
            text.extend_from_slice(&piece[..room]);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

impl Ended {
    fn output(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    fn reached(&self) -> bool {
        self.err.contains(REACHED)
    }

    fn passed(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    fn failed(&self) -> bool {
        self.status.is_some_and(|status| status.code() == Some(FAILED))
    }

    /// What the panics of the test said.
    fn panics(&self) -> &str {
        self.err.find(" panicked at ").map_or("", |at| &self.err[at..])
    }

    /// The beginning of that, on one line.
    fn said(&self) -> String {
        let lines = self.panics().lines().skip(1).take_while(|line| !line.starts_with("note: "));
        let lines: Vec<&str> = lines.take(3).map(str::trim).collect();
        lines.join(" ").chars().take(SHOWN).collect()
    }

    /// The judgement on a mutant.
    fn outcome(&self, says: &str) -> Outcome {
        let reached = self.reached();
        if self.status.is_none() {
            Outcome::Hung
        } else if self.passed() {
            Outcome::Survived { reached }
        } else if !self.failed() {
            Outcome::Crashed
        } else if reached && self.panics().contains(says) {
            Outcome::Killed
        } else {
            Outcome::FailedElsewhere
        }
    }
}

/// Runs `work` on each item, `jobs` at once, in order as far as possible. The first error ends it.
fn each<'i, T: Sync, R: Send>(
    items: &'i [T],
    jobs: usize,
    work: impl Fn(&'i T) -> Result<R, RunError> + Sync,
) -> Result<Vec<R>, RunError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let done: Mutex<Vec<(usize, R)>> = Mutex::default();
    let lock_error = |error| *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            // A process dies with the thread that started it, so each thread waits for its own.
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    match work(item) {
                        Ok(result) => {
                            done.lock().unwrap_or_else(|e| e.into_inner()).push((at, result));
                        }
                        Err(error) => {
                            next.store(items.len(), Ordering::Relaxed);
                            lock_error(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// Checks that every one of `killers` passes as long as nothing is wrong.
///
/// # Errors
/// [`RunError::Baseline`] for one that does not.
pub fn baseline(
    killers: &[&Killer],
    programs: &Programs,
    limits: Limits,
    stop: &Stop,
) -> Result<(), RunError> {
    let check = |killer: &&Killer| {
        let ended = execute(programs.of(killer), &killer.test, None, limits.time, stop)?;
        let wrong = |what| {
            let (test, output) = (killer.to_string(), ended.output());
            Err(RunError::Baseline { test, what, output })
        };
        match () {
            () if ended.status.is_none() => wrong("does not end"),
            () if !ended.passed() => wrong("fails"),
            () if !ended.out.contains("test result: ok. 1 passed") => wrong("is not there"),
            () => Ok(()),
        }
    };
    each(killers, limits.jobs, check).map(|_| ())
}

/// Runs the test of each of `mutants` with that mutant on. `progress` hears of each as it ends.
///
/// # Errors
/// [`RunError`]: a program cannot be started, or a signal came.
pub fn trials<'r>(
    registry: &'r Registry,
    mutants: &[&'r Mutant],
    programs: &Programs,
    limits: Limits,
    stop: &Stop,
    progress: impl Fn(&Trial<'r>) + Sync,
) -> Result<Vec<Trial<'r>>, RunError> {
    each(mutants, limits.jobs, |mutant| {
        let mutant: &'r Mutant = mutant;
        let (killer, number) = (registry.killer(mutant), registry.number(&mutant.seed.name));
        let ended = execute(programs.of(killer), &killer.test, number, limits.time, stop)?;
        let outcome = ended.outcome(&mutant.says);
        let (said, output) = (ended.said(), ended.output());
        let trial = Trial { mutant, killer, outcome, time: ended.time, said, output };
        progress(&trial);
        Ok(trial)
    })
}

/// A test that was run against one mutant.
#[derive(Debug)]
pub struct Hunt {
    /// Package, target and test.
    pub test: String,
    /// How it ended: as with a mutant that any text kills.
    pub outcome: Outcome,
    /// What its panic said.
    pub says: String,
    /// How long it took.
    pub time: Duration,
}

/// Runs every test of every program with mutant `number` on.
///
/// # Errors
/// [`RunError`]: a program cannot be started, or a signal came.
pub fn hunt(
    number: usize,
    programs: &Programs,
    limits: Limits,
    stop: &Stop,
) -> Result<Vec<Hunt>, RunError> {
    let mut tests = Vec::new();
    for ((_, package, target), program) in programs.all() {
        let fail = |source| RunError::Start { program: program.display().to_string(), source };
        let output =
            Command::new(program).args(["--list", "--format=terse"]).output().map_err(fail)?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Some(test) = line.strip_suffix(": test") {
                tests.push((program, format!("{package}/{target}"), test.to_owned()));
            }
        }
    }
    each(&tests, limits.jobs, |(program, place, test)| {
        let ended = execute(program, test, Some(number), limits.time, stop)?;
        let says = ended.said();
        Ok(Hunt {
            test: format!("{place}: {test}"),
            outcome: ended.outcome(""),
            says,
            time: ended.time,
        })
    })
}
