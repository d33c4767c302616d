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

/// Whether none was given up.
fn all_compared(report: &Report) -> bool {
    effect(report, Kind::Session).changed == effect(report, Kind::Compare).steps
}

/// Whether so many sessions were begun and compared, each of all RAM.
fn is_all_of(report: &Report, sessions: u64) -> bool {
    let pages = effect(report, Kind::Compare).changed;
    compared(report) == sessions
        && all_compared(report)
        && pages == sessions * (report.guest_mem >> 12)
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

/// Two vCPUs under a manager that goes on for longer than the guest.
fn guest() -> Scenario {
    let guest = Scenario::of("churn").vcpus(2).with("--smp", 3);
    guest.with("--guest-mem", "128M").with("--churn", 600)
}

/// A guest that ends soon.
fn short() -> Scenario {
    guest().append("by=manager seconds=2")
}

/// A guest that ends when the manager has done so much, and fails if that takes very long.
fn enough(minima: &str) -> Scenario {
    guest().append(&format!("by=manager seconds=150 {minima}")).timeout(200)
}

/// A session that does not end before its VM does.
const ONE_SESSION: &str = "600,session=600";

#[test]
fn a_guest_of_ours_is_judged_as_linux_is() {
    churn("churn", 20, &["--seed", "2"]).exits(0).shows("pages verified and rewritten meanwhile");
}

on_every_cpu!(our_guest_keeps_every_word, |cpu| {
    let minima =
        "min-split=10 min-collapsed=3 min-copied=10 min-runs=400 min-moved=500 min-aged=1000";
    let run = enough(minima).cpu(cpu).flag("--blocks").with("--churn", "600,seed=1").passes();
    run.shows("pages verified and rewritten meanwhile")
        .checks("a session was compared", |it| compared(it) >= 1)
        .checks("there was every kind of step", |it| {
            Kind::ALL.into_iter().all(|kind| effect(it, kind).changed != 0)
        })
        .checks("every session was compared", all_compared);
});

/// Nothing else than the VM's end can have the session compared.
#[test]
fn a_vm_that_ends_in_a_session_is_compared_then() {
    let run = short().with("--churn", ONE_SESSION).passes();
    run.checks("one session, of all RAM", |it| is_all_of(it, 1));
}

#[test]
fn the_manager_begins_anew_with_each_life_of_the_vm() {
    let guest = short().append("by=manager seconds=2 reset=1").with("--churn", ONE_SESSION);
    let run = guest.with("--restarts", 1).run().exits(0);
    run.checks("two lives", |it| it.lives == 2 && it.outcome == Outcome::Reset)
        .checks("one session in each, of all RAM", |it| is_all_of(it, 2));
}

/// What was begun and not compared is told: `hypctl churn` takes it for a failure.
#[test]
fn a_copy_that_no_frame_is_left_for_proves_nothing_and_says_so() {
    selftest_images();
    let run = short().flag("--selftest").hypervisor("selftest=short-copy").passes();
    run.checks("sessions were begun", |it| effect(it, Kind::Session).changed != 0)
        .checks("none was compared", |it| effect(it, Kind::Compare).steps == 0)
        .checks("harvests were refused", |it| effect(it, Kind::Harvest).refused != 0);
}

/// Each CPU has a vCPU: the manager works between their instructions.
#[test]
fn cpus_that_have_vcpus_do_the_managers_work() {
    let minima = "min-split=2 min-copied=2 min-moved=100 min-aged=200";
    let run = enough(minima).with("--smp", 2).passes().shows("hypervisor 0.1.0, 2 CPUs");
    run.checks("a session was compared", |it| compared(it) >= 1)
        .checks("every session was compared", all_compared);
}

/// The guest's calls and the manager's steps take the same turn: who comes second is refused. One vCPU makes all calls, so it
/// is the manager that it meets.
#[test]
fn a_guest_that_changes_its_memory_itself_and_the_manager_do_not_meet() {
    let words = "moves=200 seconds=150 min-drained=10 min-freed=4 min-lost=0 min-split=4 min-collapsed=1 \
                 min-copied=4 min-filled=0 min-runs=0 min-dissolved=0 min-busy=3";
    let run = guest().append(words).with("--churn", "600,seed=3").timeout(200).passes();
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
    enough("min-moved=300")
        .flag("--selftest")
        .hypervisor("selftest=stale-copy")
        .run()
        .exits(3)
        .shows("no harvest has reported it: the manager's copy differs");
}
