//! `./just mutants`: seeds the registry's defects and shows which test kills each.

use std::io::{IsTerminal, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mutants::build::{BuildError, build};
use mutants::registry::{Killer, Mutant, Registry};
use mutants::report;
use mutants::run::{Limits, Outcome, RunError, Trial, baseline, hunt, trials};
use mutants::stop::Stop;
use mutants::workspace::Workspace;

/// Seeds defects, one at a time, and shows which test notices each.
///
/// Exit code: 0 if every mutant was killed, 1 if one survived, 2 if the registry is wrong, the mutants cannot be
/// built, or a test fails without any defect.
#[derive(Debug, Parser)]
#[command(name = "mutants")]
struct Arguments {
    /// Only mutants whose name contains one of these words
    names: Vec<String>,
    /// The table as JSON
    #[arg(long)]
    json: bool,
    /// Show every mutant with its change and its test, and every equivalent change with its proof; run nothing
    #[arg(long, conflicts_with_all = ["json", "hunt"])]
    list: bool,
    /// Run all tests against one mutant, or one equivalent change, and show which notice it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["json", "names"])]
    hunt: Option<String>,
    /// Tests at once [default: one for each CPU]
    #[arg(long, short)]
    jobs: Option<NonZero<usize>>,
    /// Seconds that a test may take before its mutant counts as one that hung
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// The registry
    #[arg(long, value_name = "FILE", default_value = "tests/mutants/mutants.toml")]
    registry: PathBuf,
}

/// Anything that keeps mutants from being judged.
#[derive(Debug)]
enum Failure {
    Registry(String),
    Interrupted,
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &(dyn std::error::Error + 'static) = &error;
        let interrupted = matches!(any.downcast_ref(), Some(RunError::Interrupted))
            || matches!(any.downcast_ref(), Some(BuildError::Interrupted));
        if interrupted { Self::Interrupted } else { Self::Registry(error.to_string()) }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(Failure::Registry(what)) => {
            eprintln!("mutants: {what}");
            ExitCode::from(2)
        }
    }
}

/// Whether every mutant was killed.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let start = Instant::now();
    let workspace = Workspace::find(&std::env::current_dir()?)?;
    let registry = Registry::read(&workspace.root().join(&arguments.registry))?;
    if arguments.list {
        return print(&report::list(&registry)).map(|()| true);
    }
    let named = |mutant: &&Mutant| {
        let all = arguments.names.is_empty();
        all || arguments.names.iter().any(|name| mutant.seed.name.contains(name))
    };
    let chosen: Vec<&Mutant> = registry.mutants().iter().filter(named).collect();
    if chosen.is_empty() {
        return Err(Failure::Registry("no mutant has such a name; see --list".into()));
    }
    let hunted = match &arguments.hunt {
        Some(name) => Some((
            name,
            registry
                .number(name)
                .ok_or_else(|| Failure::Registry(format!("no mutant `{name}`")))?,
        )),
        None => None,
    };
    let stop = Stop::catch()?;
    workspace.generate(&registry)?;
    let programs = build(&workspace, &registry, &stop)?;
    let cpus = std::thread::available_parallelism().ok();
    let jobs = arguments.jobs.or(cpus).map_or(1, NonZero::get);
    let limits = Limits { jobs, time: Duration::from_secs(arguments.timeout) };
    if let Some((name, number)) = hunted {
        let hunts = hunt(number, &programs, limits, &stop)?;
        print(&report::hunt(name, &hunts))?;
        return Ok(hunts.iter().any(|hunt| hunt.outcome == Outcome::Killed));
    }
    let mut killers: Vec<&Killer> = chosen.iter().map(|mutant| registry.killer(mutant)).collect();
    killers.sort();
    killers.dedup();
    baseline(&killers, &programs, limits, &stop)?;
    let trials = trials(&registry, &chosen, &programs, limits, &stop, progress(chosen.len()))?;
    let text = match arguments.json {
        true => report::json(&registry, &trials, start.elapsed())? + "\n",
        false => report::table(&registry, &trials, start.elapsed()),
    };
    print(&text)?;
    Ok(trials.iter().all(|trial| trial.outcome == Outcome::Killed))
}

/// A reader that went away, as `head` does, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// On a terminal, a line that counts and names what survived so far.
fn progress(total: usize) -> impl Fn(&Trial<'_>) + Sync {
    let (shown, done) = (std::io::stderr().is_terminal(), AtomicUsize::new(0));
    move |trial| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if shown {
            let (name, word) = (&trial.mutant.seed.name, trial.outcome.word());
            if trial.outcome != Outcome::Killed {
                eprintln!("\r\x1b[K{name}: {word}");
            }
            eprint!("\r\x1b[K{done} of {total}");
            if done == total {
                eprint!("\r\x1b[K");
            }
        }
    }
}
