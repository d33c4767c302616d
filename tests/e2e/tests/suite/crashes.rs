//! What protects EL2 from itself, used on purpose: guard pages, W^X, and the dump that tells of it.
//!
//! The debug build fails as a word on its command line asks (`hyp/src/selftest.rs`).

use e2e::{Run, Scenario, Trace};
use hyp_core::report::Outcome;
use mmu_oracle::Event;

#[track_caller]
fn crash(selftest: &str) -> (Run, Trace) {
    let trace = Trace::none();
    let guest = Scenario::of("hello").with("--guest-mem", "64M");
    let guest = guest.hypervisor(&format!("selftest={selftest}"));
    let run = guest.trace(&trace.path()).run().exits(5);
    let run = run.checks("it says crash", |report| report.outcome == Outcome::Crashed);
    // The dump is told once, whole, and the guest never ran.
    assert_eq!(run.console().matches("EL2 crash").count(), 1, "{run}");
    (run.shows_no("hello from"), trace)
}

/// A number of the dump, by its name.
#[track_caller]
fn value(run: &Run, name: &str) -> u64 {
    let mut words = run.console().split_whitespace();
    // The name may stand in a sentence, too: there no number follows.
    while let Some(word) = words.next() {
        let digits = words.clone().next().unwrap_or_default().trim_start_matches("0x");
        if word == name && digits.len() == 16 {
            return u64::from_str_radix(digits, 16).unwrap();
        }
    }
    panic!("no {name} in the dump\n{run}")
}

#[test]
fn a_stack_that_ends_meets_its_guard_page_and_the_other_stack_tells() {
    for (word, cpu) in [("stack", 0), ("stack-1", 1)] {
        let (run, _) = crash(word);
        let cpu_line = format!("EL2 crash: synchronous exception on CPU {cpu}");
        let guard =
            format!("FAR lies in the guard page under the stack of CPU {cpu}: stack overflow");
        let run =
            run.shows_in_order(&[&cpu_line, "data abort in EL2", "translation fault", &guard]);
        // The guard lies between the emergency stack, which ends 16 KiB into the slot, and the stack.
        let far = value(&run, "FAR");
        assert!((0x4000..0x1_0000).contains(&(far % 0x2_0000)), "{run}");
        assert_eq!(value(&run, "ESR") >> 26, 0x25, "{run}");
        assert_eq!(value(&run, "SP") >> 16 & 1, 0, "SP is off the stack{run}");
    }
}

#[test]
fn code_and_constants_cannot_be_written() {
    let (code, _) = crash("write-code");
    let code = code.shows_in_order(&["data abort in EL2: write", "permission fault"]);
    assert_eq!(value(&code, "FAR"), 0x4020_0000, "{code}");
    let (constant, _) = crash("write-constant");
    let constant = constant.shows_in_order(&["data abort in EL2: write", "permission fault"]);
    let far = value(&constant, "FAR");
    assert!(far > 0x4020_0000 && far.is_multiple_of(0x1000), "{constant}");
    for run in [code, constant] {
        assert_eq!(value(&run, "ESR") >> 26, 0x25, "{run}");
        let elr = value(&run, "ELR");
        assert!((0x4020_0000..far).contains(&elr), "ELR is in the code{run}");
    }
}

#[test]
fn data_cannot_be_run() {
    let (run, _) = crash("run-data");
    let run = run.shows_in_order(&["instruction abort in EL2: fetch", "permission fault"]);
    assert_eq!(value(&run, "ESR") >> 26, 0x21, "{run}");
    assert_eq!(value(&run, "ELR"), value(&run, "FAR"), "{run}");
}

/// No grace period would end any more.
#[test]
fn a_guard_that_is_left_open_is_noticed_before_the_guest_runs() {
    let (run, _) = crash("guard");
    run.shows_in_order(&["CPU 0 is inside a guard for good"]);
}

#[test]
fn a_lock_or_a_slot_that_is_still_held_is_noticed_at_the_safe_point() {
    let (run, _) = crash("held-lock");
    run.shows_in_order(&["CPU 0 holds 1 locks at the safe point"]);
    let (run, _) = crash("held-slot");
    run.shows_in_order(&["CPU 0 has 1 slots in transition at the safe point"]);
}

#[test]
fn the_dump_has_the_registers_of_the_moment() {
    let (run, trace) = crash("read-unmapped");
    let run = run.shows_in_order(&["data abort in EL2: read", "translation fault"]);
    let far = value(&run, "FAR");
    assert_eq!(far, 0x10_0000_0000, "{run}");
    let registers: Vec<u64> = (0..31).map(|x| value(&run, &format!("x{x}"))).collect();
    assert!(registers.contains(&far), "no register holds the address that was read{run}");
    assert_eq!(value(&run, "SPSR") & 0xf, 9, "EL2 with its own stack pointer{run}");
    // What this CPU recorded before is there, though nobody ended the run in order; how far the other one
    // came is left to chance.
    let recorded = trace.recording().lines;
    let of_the_boot = |event: &Event| matches!(event, Event::AllocTable { pe: 0, .. });
    let tables = recorded.iter().filter(|line| of_the_boot(&line.event)).count();
    // 64 MiB have 32 tables of pages, within one table of level 2.
    assert_eq!(tables, 4 + 1 + 1 + 32, "the VM's root pages, and EL2's window on its RAM{run}");
    trace.check().exits(0);
}

#[test]
fn a_panic_says_its_message_and_its_place() {
    let (run, _) = crash("panic");
    run.shows_in_order(&[
        "EL2 crash: panic on CPU 0",
        "a selftest asked for this",
        "at hyp/src/selftest.rs:",
    ]);
}

/// QEMU raises no TLB conflict. Here every second fault of the guest is taken for one: the guest notices nothing, and
/// whatever the CPU may hold of the VM is invalidated each time.
#[test]
fn a_tlb_conflict_is_resolved_and_the_guest_goes_on() {
    let trace = Trace::none();
    let guest = Scenario::of("hello");
    let run = guest.hypervisor("selftest=conflict").trace(&trace.path()).run().exits(0);
    run.checks(
        "each was resolved by an invalidation of everything of the VM on that CPU",
        |report| {
            let stats = &report.stats;
            stats.tlb_conflicts >= 16 && stats.tlbi.get("VMALLS12E1") == Some(&stats.tlb_conflicts)
        },
    );
    trace.check().exits(0);
}

/// A fault that comes back without end stops the VM, but for one that waits for memory that another CPU copies: here a
/// copy takes longer than any fault may be repeated.
#[test]
fn a_copy_may_take_longer_than_a_fault_may_be_repeated() {
    let trace = Trace::none();
    // Enough to copy something that others work with, and no more.
    let least = "moves=1 min-copied=4 min-drained=0 min-freed=0 min-lost=0 min-split=0 min-collapsed=0 min-filled=0 \
                 min-runs=0 min-dissolved=0";
    let guest = Scenario::of("churn").vcpus(4).flag("--blocks").append(least);
    let guest = guest.hypervisor("selftest=slow-copy").trace(&trace.path());
    let run = guest.with("--trace-max", 1000).timeout(120).passes();
    run.checks("a vCPU waited for a copy", |it| it.stats.copied > 0 && it.stats.retries > 300_000);
}

#[test]
fn an_unknown_selftest_is_refused() {
    let trace = Trace::none();
    let guest = Scenario::of("hello").hypervisor("selftest=all").trace(&trace.path());
    guest.run().exits(4).shows("no selftest \"all\"");
}
