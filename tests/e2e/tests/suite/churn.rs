//! A guest verifies its memory under a manager that never lets it rest.
//!
//! The guests judge themselves; the manager compares a second copy of RAM, which it keeps by the dirty log alone; `hypctl churn` sees to
//! it that each kind of step has changed enough. What runs differs: dirty state by hardware or by faults, a CPU for the manager or none.

use std::process::Command;
use std::time::Duration;

use e2e::{Run, Scenario, Trace, bounded, host, hypctl, on_every_cpu, selftest_images};
use hyp_core::churn::{Effect, Kind};
use hyp_core::report::{Outcome, Report};

/// For a run that hangs, beyond its time.
const PATIENCE: u64 = 180;

/// `hypctl churn` with these words, for so many seconds.
#[track_caller]
fn churn(guest: &str, seconds: u64, words: &[&str]) -> Run {
    e2e::images();
    let folder = tempfile::tempdir().unwrap();
    let summary = folder.path().join("summary.json");
    let mut command = Command::new(hypctl());
    command.args(["churn", guest, "--no-build", "--seconds", &seconds.to_string()]).args(words);
    let timeout = seconds + PATIENCE;
    command.arg("--timeout").arg(timeout.to_string()).arg("--json").arg(&summary);
    let _host = host::shared();
    let ended = bounded::run(&mut command, b"", Duration::from_secs(timeout + 20)).unwrap();
    Run::new(&command, ended, std::fs::read_to_string(summary).ok())
}

fn effect(report: &Report, kind: Kind) -> Effect {
    report.stats.churn.get(&kind).copied().unwrap_or_default()
}

/// Sessions that were compared as a whole; none if nothing was ever reported as written.
fn compared(report: &Report) -> u64 {
    let copied = effect(report, Kind::Harvest).changed;
    if copied == 0 { 0 } else { effect(report, Kind::Compare).steps }
}

#[test]
fn linux_keeps_its_checksums_for_a_minute() {
    churn("linux", 60, &[])
        .exits(0)
        .shows("CPU 0: ")
        .shows("CPU 1: ")
        .shows_no("wrong checksum")
        .checks("it switched itself off", |it| it.outcome == Outcome::PoweredOff);
}

on_every_cpu!(our_guest_keeps_every_word, |cpu| {
    churn("churn", 12, &["--cpu", cpu, "--blocks", "--seed", "1"])
        .exits(0)
        .shows("pages verified and rewritten meanwhile");
});

/// A guest that ends long before the manager's time.
fn short() -> Scenario {
    let words = "by=manager seconds=2";
    let guest = Scenario::of("churn").vcpus(2).with("--smp", 3).append(words);
    guest.with("--guest-mem", "128M").with("--churn", 600)
}

#[test]
fn a_vm_that_ends_in_a_session_is_compared_then() {
    short().passes().checks("it was compared", |it| compared(it) >= 1);
}

#[test]
fn the_manager_begins_anew_with_each_life_of_the_vm() {
    let words = "by=manager seconds=2 reset=1";
    let run = short().append(words).with("--restarts", 1).run().exits(0);
    run.checks("two lives", |it| it.lives == 2 && it.outcome == Outcome::Reset)
        .checks("both were compared", |it| compared(it) >= 2);
}

/// Each CPU has a vCPU: the manager works between their instructions.
#[test]
fn cpus_that_have_vcpus_do_the_managers_work() {
    let guest = short().with("--smp", 2).append("by=manager seconds=10");
    let run = guest.passes().shows("hypervisor 0.1.0, 2 CPUs");
    run.checks("a session was compared", |it| compared(it) >= 1)
        .checks("steps of several kinds were taken", |it| {
            it.stats.churn.values().filter(|effect| effect.steps != 0).count() >= 4
        });
}

/// The guest's calls and the manager's steps take the same turn.
#[test]
fn a_guest_that_changes_its_memory_itself_and_the_manager_do_not_meet() {
    let words = "moves=200 seconds=40 min-drained=10 min-freed=4 min-lost=0 min-split=4 min-collapsed=1 \
                 min-copied=4 min-runs=0 min-dissolved=0";
    let run = short().append(words).with("--churn", "60,seed=3").timeout(120).passes();
    run.checks("both were at it", |it| {
        let moved = effect(it, Kind::Move).changed;
        it.stats.churn.values().any(|effect| effect.steps != 0) && moved < it.stats.moved
    });
}

#[test]
fn what_the_manager_does_is_sound() {
    let trace = Trace::none();
    let guest = short().with("--guest-mem", "64M").append("by=manager seconds=2 pages=16");
    guest.trace(&trace.path()).timeout(120).passes();
    trace.check().exits(0).shows("of 3 PEs").shows("verdicts             none");
}

/// What proves that the comparison sees what a lost write would be.
#[test]
fn a_copy_that_is_too_old_stops_the_vm_and_names_the_page() {
    selftest_images();
    short()
        .flag("--selftest")
        .hypervisor("selftest=stale-copy")
        .run()
        .exits(3)
        .shows("no harvest has reported it: the manager's copy differs");
}
