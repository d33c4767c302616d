//! The violation log: what it says of each violation, when it is told, and that none is missing.

use e2e::{Run, Scenario, on_every_cpu};
use hyp_core::report::Outcome as End;
use hyp_core::violation::{KEPT, Kind, Outcome, Violation};

/// First IPA behind the RAM of every run here, where the recovery window begins.
const RAM_END: u64 = 0x4400_0000;

/// A case of guest `wild` in a window of 16 MiB behind RAM.
fn case(name: &str, policy: &str) -> Scenario {
    Scenario::of("wild")
        .append(&format!("case={name}"))
        .with("--guest-mem", "64M")
        .with("--recover", format!("{policy}@{RAM_END:#x}+0x1000000"))
        .vcpus(1)
}

/// Expects that the log and the counters agree: each violation was counted once.
#[track_caller]
fn all_are_logged(run: &Run) -> Vec<Violation> {
    let report = run.report();
    let stats = &report.stats;
    let stopped = u64::from(report.outcome == End::Stopped);
    let counted = stats.recovered + stats.injected + stats.violations + stopped;
    assert_eq!(report.violation_log.total(), counted, "violations in the log (left)\n{run}");
    assert_eq!(report.violation_log.lost, stats.violations_lost, "{run}");
    assert!(counted != 0, "nothing happened\n{run}");
    report.violation_log.list
}

/// Lines on the console.
fn lines(run: &Run) -> usize {
    run.console().lines().filter(|line| line.starts_with("hyp: violation: ")).count()
}

on_every_cpu!(a_violation_is_told_with_all_that_hardware_says, |cpu| {
    let run = case("hole-read", "scratch").cpu(cpu).passes();
    let list = all_are_logged(&run);
    let sizes: Vec<_> = list.iter().map(|one| one.size).collect();
    assert_eq!(sizes, [1, 2, 4, 8, 4].map(Some), "{run}");
    let mut before = 0;
    for (number, one) in (0..).zip(&list) {
        let page = RAM_END + number * 0x1000;
        let at = if number < 4 { page + 0x128 } else { page };
        let kind = (one.kind, one.outcome, one.count);
        assert_eq!(kind, (Kind::Read, Outcome::Scratch, 1), "{run}");
        assert_eq!((one.va, one.ipa), (Some(at), Some(at)), "VA and IPA\n{run}");
        assert_eq!((one.vm, one.vcpu, one.el), (0, 0, 1), "who\n{run}");
        assert!(one.register.is_some_and(|register| register < 31), "{run}");
        assert!((0x4020_0000..0x4060_0000).contains(&one.pc), "PC {:#x}\n{run}", one.pc);
        assert!(one.time > before, "time goes on\n{run}");
        before = one.time;
    }
    assert_eq!(lines(&run), 5, "a line for each\n{run}");
    run.shows("read of 1 byte to register").shows(": scratch page");
});

on_every_cpu!(what_hardware_does_not_say_is_not_guessed, |cpu| {
    let run = case("hole-pair", "scratch").cpu(cpu).passes();
    let list = all_are_logged(&run);
    let kinds: Vec<_> = list.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [Kind::Read, Kind::Write, Kind::Write, Kind::Read], "{run}");
    assert!(list.iter().all(|one| (one.size, one.register) == (None, None)), "{run}");
    run.shows("read (not decoded)").shows("write (not decoded)");
});

#[test]
fn a_walk_is_no_access_and_its_address_is_that_of_the_table() {
    let run = case("hole-walk", "scratch").passes();
    let walks: Vec<_> =
        all_are_logged(&run).into_iter().filter(|one| one.kind == Kind::Walk).collect();
    assert!(!walks.is_empty(), "{run}");
    assert!(walks.iter().all(|one| (one.size, one.register) == (None, None)), "{run}");
    assert!(walks.iter().all(|one| one.ipa != one.va), "{run}");
}

#[test]
fn what_is_injected_names_the_exception_level() {
    let run = case("inject-el0", "inject").passes();
    let list = all_are_logged(&run);
    let kinds: Vec<_> = list.iter().map(|one| (one.el, one.kind)).collect();
    assert_eq!(kinds, [Kind::Read, Kind::Write, Kind::Fetch].map(|kind| (0, kind)), "{run}");
    assert!(list.iter().all(|one| one.outcome == Outcome::Injected), "{run}");
}

#[test]
fn the_same_again_is_one_row_with_a_count() {
    let run = case("inject-again", "inject").passes();
    let list = all_are_logged(&run);
    let counts: Vec<_> = list.iter().map(|one| (one.kind, one.count)).collect();
    assert_eq!(counts, [(Kind::Read, 1000)], "{run}");
    run.shows(", 1000 times");
}

#[test]
fn a_storm_floods_neither_the_log_nor_the_console() {
    let run = case("hole-storm", "scratch").vcpus(2).timeout(120).passes();
    let list = all_are_logged(&run);
    assert_eq!(list.len(), KEPT, "{run}");
    // One for each that is kept, and one a second for the rest.
    let most = KEPT + run.elapsed().as_secs() as usize + 2;
    assert!(lines(&run) <= most, "more than {most} lines\n{run}");
    run.shows(" more");
}

#[test]
fn the_last_violation_of_a_stopped_vm_is_in_its_log() {
    let run = case("hole-endless", "scratch").with("--recover-limit", 5).run().exits(3);
    let list = all_are_logged(&run);
    let outcomes: Vec<_> = list.iter().map(|one| one.outcome).collect();
    let [recovered @ .., last] = &outcomes[..] else { panic!("no violation\n{run}") };
    assert!(recovered.iter().all(|outcome| *outcome == Outcome::Scratch), "{run}");
    assert_eq!(*last, Outcome::Stopped, "{run}");
    assert_eq!(recovered.len(), 5, "{run}");
}

#[test]
fn the_log_is_that_of_all_lives() {
    let run = case("hole-secret", "scratch").with("--restarts", 3).run();
    assert!(run.report().lives > 1, "the guest was not started again\n{run}");
    all_are_logged(&run);
}

/// EL2's timer takes the vCPU out of its guest: there is no other reason to leave it, and no other vCPU.
#[test]
fn a_violation_is_told_while_its_vcpu_runs_on() {
    let run = case("hole-told", "scratch").passes();
    all_are_logged(&run);
    run.shows_in_order(&["hyp: violation: ", "wild: a second later"]);
}

/// Idle CPUs wait by the same timer.
#[test]
fn the_timer_serves_the_log_and_scans_alike() {
    let run = case("hole-told", "scratch").with("--smp", 3).flag("--scan").passes();
    all_are_logged(&run);
    run.shows_in_order(&["hyp: violation: ", "wild: a second later"])
        .checks("idle CPUs scanned", |report| report.stats.scan.looked > 0);
}
