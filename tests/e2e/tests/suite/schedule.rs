//! More vCPUs than CPUs: each gets its turns and finds its registers again, and what EL2 does under it stays right.
//!
//! The builds with selftests run: at each safe point they assert that their CPU holds no guard, no lock and no slot in transition.

use e2e::{Run, Scenario, Trace, on_every_cpu};
use hyp_core::report::Outcome;

/// A guest with so many vCPUs on so many CPUs.
fn crowded(guest: &str, vcpus: u32, cpus: u32) -> Scenario {
    Scenario::of(guest).vcpus(vcpus).with("--smp", cpus).selftest().timeout(120)
}

/// Each time that another vCPU gets a CPU ends the TLB entries of the first one's stage 1 there.
#[track_caller]
fn switched(run: Run, at_least: u64) -> Run {
    run.checks("vCPUs were switched", |report| {
        report.stats.tlbi.get("VMALLE1").is_some_and(|count| *count >= at_least)
    })
}

on_every_cpu!(turns, |cpu| {
    // Two of the four have to get the CPU at each of 36 barriers, on each CPU.
    let run = crowded("turns", 4, 2).cpu(cpu).passes();
    switched(run, 36 * 2).shows("turns: 4 vCPUs met 36 times, and slept 12 times each");
});

#[test]
fn eight_vcpus_take_turns_on_one_cpu() {
    let run = crowded("turns", 8, 1).append("lives=2 rounds=4 naps=2").passes();
    switched(run, 8 * 7).shows("turns: 8 vCPUs met 8 times, and slept 4 times each");
}

#[test]
fn vcpus_that_have_a_cpu_each_are_never_switched() {
    let run = Scenario::of("turns").vcpus(4).selftest().timeout(120).passes();
    run.checks("one entry a CPU", |report| report.stats.tlbi.get("VMALLE1") == Some(&4));
}

/// The numbers of CPUs and of vCPUs do not divide.
#[test]
fn homes_need_not_have_the_same_number_of_vcpus() {
    crowded("turns", 5, 3).append("lives=2 rounds=4 naps=2").passes();
    crowded("hello", 3, 2).passes().shows("hello from vCPU 2 of 3");
}

/// Two models that share no feature of stage 2.
const MODELS: [&str; 2] = ["max", "cortex-a53"];

#[test]
fn memory_is_populated_by_vcpus_that_take_turns() {
    for cpu in MODELS {
        let run = crowded("touch", 4, 2).cpu(cpu).append("pages=128 min-lost=0").passes();
        // Six times all four are switched on: vCPU 0 loses its CPU and gets it again, and one of the others gets the other CPU.
        switched(run, 6 * 3);
    }
}

#[test]
fn memory_moves_under_vcpus_that_take_turns_in_two_lives() {
    for cpu in MODELS {
        let words = "moves=10 seconds=90 min-drained=1 min-freed=2 min-lost=0 reset=1";
        let run = crowded("churn", 4, 2).cpu(cpu).append(words).with("--restarts", 1).passes();
        switched(run, 8)
            .checks("two lives", |it| it.lives == 2 && it.outcome == Outcome::Reset)
            .checks("pages were moved", |it| it.stats.moved > 100);
    }
}

#[test]
fn blocks_change_size_under_vcpus_that_take_turns() {
    for cpu in MODELS {
        let words = "moves=10 seconds=90 min-drained=1 min-freed=1 min-lost=0 min-split=2 min-collapsed=2 min-copied=2 \
                     min-filled=1 min-runs=4 min-dissolved=2";
        let run = crowded("churn", 4, 2).cpu(cpu).append(words).flag("--blocks").passes();
        switched(run, 8);
    }
}

/// A CPU that stands still takes the interrupt that says whose turn it is. vCPUs that are in the way of each other show whether it looks
/// afterwards: nothing else takes them out of the guest.
#[test]
fn who_waits_for_a_turn_when_all_stand_still_has_it_afterwards() {
    for cpu in MODELS {
        let run = crowded("turns", 4, 2).cpu(cpu).append("pauses=6").passes();
        switched(run, 6 * 6).shows("turns: 6 long pauses, and the ball was passed");
    }
}

/// At the end of each session all CPUs stand still, whichever vCPU they have.
#[test]
fn a_dirty_log_misses_nothing_of_vcpus_that_take_turns() {
    for cpu in MODELS {
        let words = "sessions=1 rounds=4 min-dirtied=100 min-stopped=1";
        switched(crowded("dirtier", 4, 2).cpu(cpu).append(words).passes(), 8);
    }
}

#[test]
fn a_storm_of_calls_by_vcpus_that_take_turns() {
    for cpu in MODELS {
        let run = crowded("storm", 4, 2).cpu(cpu).append("calls=30 end=0").flag("--blocks");
        switched(run.passes(), 8);
    }
}

#[test]
fn a_cpu_scans_while_all_of_its_vcpus_are_off_or_wait() {
    for (by, vcpus) in [("idle", 4), ("wfi", 1)] {
        let run = crowded("settle", vcpus, vcpus.div_ceil(2)).append(&format!("by={by} spans=6"));
        let run = run.flag("--scan").passes();
        run.checks("idle CPUs scanned", |report| report.stats.scan.idle > 0);
    }
}

/// The VM ends on one vCPU's word while others spin, sleep, or wait for their turn.
#[test]
fn vcpus_without_a_turn_end_with_the_vm() {
    let case = |words: &str| crowded("wild", 6, 2).append(&format!("case={words}"));
    case("spin-others").run().exits(0);
    case("sleep-others").run().exits(0);
    case("fail-other").run().exits(1);
    case("verdict-fail code=7").run().exits(1);
    case("reset").with("--restarts", 2).run().checks("three lives", |it| it.lives == 3);
    case("cpu-off").run().exits(3).shows("the last running vCPU switched itself off");
}

/// Violations are told as those of the vCPU that made them, though several share a CPU's log.
#[test]
fn violations_are_those_of_the_vcpu_that_had_the_cpu() {
    let run = crowded("wild", 4, 2).append("case=hole-crowd").with("--recover", "scratch").passes();
    let list = run.report().violation_log.list;
    let has = |vcpu| list.iter().any(|one| one.vcpu == vcpu);
    // Whichever CPU is the faster one: its log has records of both of its vCPUs.
    assert!([[0, 2], [1, 3]].iter().any(|pair| pair.iter().all(|vcpu| has(*vcpu))), "{run}");
}

/// Translations of a vCPU that has lost its CPU are gone before the next one runs there.
#[test]
fn what_vcpus_that_take_turns_make_el2_do_is_sound() {
    for (guest, words) in [
        ("turns", "lives=2 rounds=3 naps=1"),
        ("churn", "moves=6 min-drained=0 min-freed=1 min-lost=0 seconds=600"),
    ] {
        let trace = Trace::none();
        let guest = Scenario::of(guest).vcpus(3).with("--smp", 2).flag("--icount");
        let run = guest.append(words).trace(&trace.path()).timeout(120).passes();
        switched(run, 4);
        trace.check().exits(0).shows("of 2 PEs, in total order").shows("verdicts             none");
    }
}
