//! EL2's window on the guest's memory: which faults of EL2 are resolved there, and which are its end.
//!
//! What EL2 reaches for, and with which locks held, are scenarios of `hypctl recover`.

use e2e::{Run, Scenario, Trace};
use hyp_core::report::Outcome;

/// Behind the RAM of every run here.
const HOLES: &str = "scratch@0x44000000+16M";

/// A case of `wild` under the debug build, which records.
fn case(name: &str, trace: &Trace) -> Scenario {
    let guest = Scenario::of("wild").append(&format!("case={name}")).with("--guest-mem", "64M");
    guest.with("--recover", HOLES).vcpus(2).trace(&trace.path())
}

#[track_caller]
fn crashes(run: Run) -> Run {
    let run = run.exits(5).checks("it says crash", |report| report.outcome == Outcome::Crashed);
    assert_eq!(run.console().matches("EL2 crash").count(), 1, "{run}");
    run
}

/// The address of the fault, by the dump.
#[track_caller]
fn far(run: &Run) -> u64 {
    let rest = run.console().split("FAR 0x").nth(1);
    let digits = rest.and_then(|rest| rest.split_whitespace().next());
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_else(|| panic!("{run}"))
}

#[test]
fn an_access_to_the_window_by_any_other_instruction_is_a_crash() {
    let trace = Trace::none();
    let run = crashes(case("el2-same", &trace).hypervisor("selftest=wild-window").run());
    let run = run.shows_in_order(&["data abort in EL2: read", "translation fault"]);
    assert_eq!(far(&run), (1 << 47) + 0x4000_0000, "the byte of the guest's first address{run}");
}

#[test]
fn an_access_elsewhere_by_the_routines_of_the_window_is_a_crash() {
    let trace = Trace::none();
    let run = crashes(case("el2-same", &trace).hypervisor("selftest=wild-routine").run());
    let run = run.shows_in_order(&["data abort in EL2: read", "translation fault"]);
    assert_eq!(far(&run), 0x10_0000_0000, "{run}");
}

#[test]
fn an_access_to_the_window_of_nobodys_memory_is_a_crash() {
    let trace = Trace::none();
    let run = crashes(case("el2-same", &trace).hypervisor("selftest=wild-before").run());
    let run = run.shows_in_order(&["data abort in EL2: read", "translation fault"]);
    assert_eq!(far(&run), (1 << 47) + 0x4000_0000, "{run}");
}

/// The recovery of a fault must do without locks: this is what the scenarios with locks held find if it does not.
#[test]
fn an_install_that_takes_the_tables_lock_is_found_by_name() {
    for name in ["el2-held", "el2-others"] {
        let trace = Trace::none();
        let run = case(name, &trace).hypervisor("selftest=locked-install").run();
        crashes(run).shows_in_order(&[
            "EL2 crash: panic on CPU",
            "asks for the lock of the stage-2 table at 0x",
            "while it resolves a fault",
        ]);
    }
}

/// Pages that EL2 has reached are moved and released, and every step is judged: EL2's TLBs were told before.
#[test]
fn what_is_taken_away_is_taken_out_of_the_window_before() {
    let trace = Trace::none();
    let run = case("el2-same", &trace).timeout(120).run().exits(0);
    run.checks("EL2's TLBs were told", |report| {
        report.stats.tlbi.get("VAE2IS").is_some_and(|count| *count >= 64)
    });
    trace.check().exits(0);
}
