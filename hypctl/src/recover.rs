//! `hypctl recover`: the recovery suite, a table of wild accesses and of what has to come of each.
//!
//! | file | story |
//! | --- | --- |
//! | `recover/scenarios.rs` | the scenarios: what each does, under which policy, and what is expected |
//! | `recover/judge.rs`, `recover/logged.rs` | whether a run came to that; the records that it left |
//! | `recover/table.rs` | the table on the terminal, and the JSON |
//!
//! A scenario is one `hypctl run`, which anybody can repeat alone in the checkout: the line is in `--list` and in the JSON. It runs the
//! hypervisor's build with selftests, in which a fault handler that asks for a lock or for memory is a crash. Runs are
//! judged by the hypervisor's report and by the guest's own verdict, never by how long anything took.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Parser;

use crate::build::build;
use crate::cli::{Cli, Command, RecoverArgs, RunArgs};
use crate::error::Error;
use crate::exit::Exit;
use crate::machine::shell_line;
use crate::progress::Progress;
use crate::qemu::{Qemu, TESTED_CPUS};
use crate::run::{say, unattended};
use crate::signals::Signals;
use crate::workspace::{Variant, Workspace};

pub mod judge;
mod logged;
pub mod scenarios;
mod table;

pub use judge::Judged;
pub use scenarios::{SCENARIOS, Scenario};

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error(transparent)]
    Before(#[from] Error),
    #[error("there is no scenario `{word}`; known: {known}")]
    Unknown { word: String, known: String },
    #[error("signals: {0}")]
    Signals(io::Error),
}

/// A scenario on a CPU model.
type Task<'a> = (&'static Scenario, &'a str);

/// Runs `hypctl recover`.
pub fn recover(arguments: &RecoverArgs) -> Exit {
    suite(arguments).unwrap_or_else(|error| {
        say(&error.to_string());
        Exit::USAGE
    })
}

fn suite(arguments: &RecoverArgs) -> Result<Exit, RecoverError> {
    let scenarios = chosen(&arguments.scenarios)?;
    let cpus = models(&arguments.cpu);
    if arguments.list {
        let _ = io::stdout().write_all(list(&scenarios, cpus[0]).as_bytes());
        return Ok(Exit::OK);
    }
    if let Some(path) = &arguments.json
        && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        return Err(Error::NoFolder { option: "json", folder: folder.to_owned() }.into());
    }
    let workspace = Workspace::find().map_err(Error::from)?;
    let qemu = Qemu::find().map_err(Error::from)?;
    for cpu in &cpus {
        qemu.expect_cpu(cpu).map_err(Error::from)?;
    }
    if !arguments.no_build {
        build(&workspace, Variant::Selftest, arguments.quiet).map_err(Error::from)?;
    }
    // Held throughout, so that no signal falls between two runs.
    let signals = Signals::catch().map_err(RecoverError::Signals)?;
    let tasks: Vec<Task<'_>> =
        scenarios.iter().flat_map(|one| cpus.iter().map(|cpu| (*one, *cpu))).collect();
    let judged = run_all(&tasks, arguments);
    let exit = match signals.take() {
        Some(signal) => Exit::from_signal(signal),
        None if judged.iter().all(Judged::is_as_expected) => Exit::OK,
        None => Exit::VERDICT,
    };
    let _ = io::stdout().write_all(table::text(&cpus, &judged).as_bytes());
    if judged.len() < tasks.len() {
        say(&format!("{} of {} runs were made", judged.len(), tasks.len()));
    }
    if let Some(path) = &arguments.json
        && let Err(error) = table::write(path, &qemu, &judged)
    {
        say(&format!("{}: {error}", path.display()));
        return Ok(if exit == Exit::OK { Exit::NO_REPORT } else { exit });
    }
    Ok(exit)
}

/// The scenarios with these names, in the table's order; all if none is named.
fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>, RecoverError> {
    let unknown = |word: &&String| !SCENARIOS.iter().any(|one| one.name == word.as_str());
    if let Some(word) = names.iter().find(unknown) {
        let known = SCENARIOS.iter().map(|one| one.name).collect::<Vec<_>>().join(", ");
        return Err(RecoverError::Unknown { word: word.clone(), known });
    }
    let wanted = |one: &&Scenario| names.is_empty() || names.iter().any(|name| name == one.name);
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

/// The CPU models that were asked for, each once; else those that together take every path.
fn models(asked: &[String]) -> Vec<&str> {
    if asked.is_empty() {
        return TESTED_CPUS.to_vec();
    }
    let mut seen = BTreeSet::new();
    asked.iter().map(String::as_str).filter(|cpu| seen.insert(*cpu)).collect()
}

/// The scenarios, and how to run each alone.
fn list(scenarios: &[&'static Scenario], cpu: &str) -> String {
    let entry = |one: &&Scenario| {
        let words: Vec<_> = one.words(cpu).iter().map(Into::into).collect();
        let line = shell_line("./just".as_ref(), &words);
        format!("{} ({}): {}\n    {line}\n", one.name, one.policy, one.about)
    };
    scenarios.iter().map(entry).collect()
}

/// Runs the tasks, several at a time; the results are in the tasks' order. After a signal there are no more.
fn run_all(tasks: &[Task<'_>], arguments: &RecoverArgs) -> Vec<Judged> {
    let progress = Progress::new(tasks.len() as u64, arguments.quiet);
    let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new(Vec::new());
    let work = || {
        while !ended.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(scenario, cpu)) = tasks.get(number) else { return };
            progress.begin(format!("{} on {cpu}", scenario.name));
            let judged = one(scenario, cpu);
            if judged.summary.ended == "signal" {
                ended.store(true, Ordering::Relaxed);
                return;
            }
            progress.done();
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, judged));
        }
    };
    // A child dies with the thread that started it: these live until all is done.
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, judged)| judged).collect()
}

/// Runs one scenario on one CPU model. The images are there.
pub fn one(scenario: &'static Scenario, cpu: &str) -> Judged {
    let mut console = Vec::new();
    let summary = unattended(&run_arguments(scenario, cpu), &mut console);
    Judged::of(scenario, cpu, summary, String::from_utf8_lossy(&console).into_owned())
}

/// The `hypctl run` that a scenario is. It finds its script wherever this is called.
fn run_arguments(scenario: &Scenario, cpu: &str) -> RunArgs {
    let mut words = vec!["hypctl".to_owned()];
    words.extend(scenario.words(cpu));
    words.extend(["--no-build", "--quiet"].map(str::to_owned));
    match Cli::parse_from(words).command {
        Command::Run(mut run) => {
            run.script = run.script.map(|path| match Workspace::find() {
                Ok(workspace) => workspace.root().join(path),
                Err(_) => path,
            });
            *run
        }
        // The first word of every scenario is `run`, which a test looks at.
        _ => unreachable!("scenario {}", scenario.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_a_run_that_can_be_typed() {
        let mut names = BTreeSet::new();
        for scenario in SCENARIOS {
            let run = run_arguments(scenario, "cortex-a53");
            assert_eq!(run.common.cpu, "cortex-a53");
            assert!(run.common.selftest && run.common.timeout.is_some(), "{}", scenario.name);
            assert!(names.insert(scenario.name), "{} is there twice", scenario.name);
            assert!(!scenario.about.is_empty() && !scenario.policy.is_empty());
        }
    }

    #[test]
    fn an_unknown_scenario_lists_those_that_there_are() {
        let error = chosen(&["raed".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`raed`") && error.contains("stop-read, "), "{error}");
    }

    #[test]
    fn names_choose_in_the_tables_order_and_models_are_run_once() {
        let [first, second] = [SCENARIOS[0].name, SCENARIOS[1].name];
        let named = chosen(&[second.to_owned(), first.to_owned()]).unwrap();
        assert_eq!(named.iter().map(|one| one.name).collect::<Vec<_>>(), [first, second]);
        assert_eq!(chosen(&[]).unwrap().len(), SCENARIOS.len());
        assert_eq!(models(&[]), TESTED_CPUS);
        assert_eq!(models(&["max".to_owned(), "max".to_owned()]), ["max"]);
    }

    #[test]
    fn the_list_has_a_line_to_type_for_each() {
        let text = list(&SCENARIOS.iter().collect::<Vec<_>>(), "max");
        assert_eq!(text.matches("    ./just run ").count(), SCENARIOS.len());
        assert!(text.contains("--selftest --cpu max"), "{text}");
    }
}
