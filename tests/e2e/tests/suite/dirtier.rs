//! The dirty log misses nothing: a second copy that is kept up by what harvests report is the guest's memory in the end.
//!
//! The guest (`guest-images/src/bin/dirtier`) judges itself: it verifies every page, has the hypervisor compare every byte, and
//! fails unless everything has happened as often as it is told here. What runs differs: dirty state by hardware or by
//! faults, invalidations by range or one by one, RAM in pages or in blocks, as far as the CPU has them.

use e2e::{Run, Scenario};
use hyp_core::report::Outcome;

/// What a CPU does without.
const DIRTY: &str = "hw-dirty";
const RANGES: &str = "tlbi-range";

/// The guest with these words.
fn guest(cpu: &str, words: &str) -> Scenario {
    Scenario::of("dirtier").cpu(cpu).vcpus(4).append(words).timeout(150)
}

/// Runs the guest on a CPU that does without what `mask` names, with RAM in pages and in blocks.
#[track_caller]
fn dirtier(cpu: &str, mask: &[&str]) {
    for blocks in [false, true] {
        let has = |feature: &str| match feature {
            DIRTY => cpu != "cortex-a53",
            _ => matches!(cpu, "max" | "neoverse-n2"),
        };
        let [hardware, ranges] = [DIRTY, RANGES].map(|it| has(it) && !mask.contains(&it));
        // A break leaves windows, in which whoever writes comes again; faults make pages dirty where hardware does not.
        let least = if hardware { "min-windows=20" } else { "min-refaults=500" };
        let words = format!("sessions=2 min-dirtied=2000 min-stopped=50 {least}");
        let run = if blocks {
            guest(cpu, &format!("{words} blocks=1")).flag("--blocks")
        } else {
            guest(cpu, &words)
        };
        let run = match mask {
            [] => run,
            names => run.with("--mask", names.join(",")),
        };
        let run = run
            .passes()
            .checks("hardware makes pages dirty", |it| {
                it.cpu_features.contains("HW_DIRTY") == hardware
            })
            .checks("a write to a clean page faults where hardware does not", |it| {
                (it.stats.relaxed == 0) == hardware
            })
            .checks("invalidations are by range", |it| {
                it.stats.tlbi.iter().any(|(name, _)| name == "RIPAS2E1IS") == ranges
            });
        if blocks {
            run.checks("blocks were split and made", |it| {
                it.stats.split > 0 && it.stats.collapsed > 0
            });
        }
    }
}

#[test]
fn max() {
    dirtier("max", &[]);
}

#[test]
fn max_by_faults() {
    dirtier("max", &[DIRTY]);
}

#[test]
fn max_without_ranges() {
    dirtier("max", &[RANGES]);
}

#[test]
fn max_by_faults_without_ranges() {
    dirtier("max", &[DIRTY, RANGES]);
}

#[test]
fn neoverse_n2() {
    dirtier("neoverse-n2", &[]);
}

#[test]
fn neoverse_n2_by_faults() {
    dirtier("neoverse-n2", &[DIRTY]);
}

#[test]
fn neoverse_n2_without_ranges() {
    dirtier("neoverse-n2", &[RANGES]);
}

#[test]
fn neoverse_n2_by_faults_without_ranges() {
    dirtier("neoverse-n2", &[DIRTY, RANGES]);
}

#[test]
fn cortex_a76() {
    dirtier("cortex-a76", &[]);
}

#[test]
fn cortex_a76_by_faults() {
    dirtier("cortex-a76", &[DIRTY]);
}

#[test]
fn cortex_a53() {
    dirtier("cortex-a53", &[]);
}

/// vCPUs stop each other while others are switched on and off.
#[test]
fn vcpus_that_come_and_go_stand_still() {
    guest("max", "crowd=1 sessions=1").passes();
    guest("cortex-a53", "crowd=1 sessions=1").passes();
}

/// The VM ends in the middle of a session, with a shadow, while vCPUs write. That all of it comes back is checked of every
/// run.
#[track_caller]
fn ended(end: u32, scenario: impl FnOnce(Scenario) -> Scenario) -> Run {
    scenario(guest("max", &format!("sessions=1 end={end}"))).run()
}

#[test]
fn a_verdict_while_writes_are_logged_gives_all_back() {
    ended(1, |it| it.flag("--blocks")).exits(0);
}

#[test]
fn a_reset_while_writes_are_logged_gives_all_back_and_the_next_life_logs_again() {
    ended(2, |it| it.with("--restarts", 1))
        .exits(0)
        .checks("two lives", |it| it.lives == 2 && it.outcome == Outcome::Reset);
}

#[test]
fn a_vm_that_is_stopped_while_writes_are_logged_gives_all_back() {
    ended(3, |it| it.with("--mask", DIRTY)).exits(3).shows("nothing is mapped here");
}
