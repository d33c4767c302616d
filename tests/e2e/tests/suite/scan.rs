//! RAM that was populated page by page, in disorder, becomes blocks. The guest knows which of its spans must, which must not,
//! and verifies every page; here the hypervisor's own counts are compared with that.

use e2e::{Run, Scenario, Trace, on_every_cpu};

/// Spans of the guest's, and those that are worth a block when it has populated them.
const SPANS: u64 = 6;
const WORTH: u64 = SPANS - 2;
/// Pages that a block may have had missing, which are filled.
const HOLES: u64 = 64;

fn settle(by: &str) -> Scenario {
    Scenario::of("settle").append(&format!("by={by} spans={SPANS}")).flag("--scan")
}

/// No CPU is idle: each scan that the guest asks for has one right outcome.
#[track_caller]
fn hysteresis(run: Run) {
    run.checks("no CPU was idle", |report| report.stats.scan.idle == 0)
        // One more span when its last hole too many was touched, and one that was split and lay where it was.
        .checks("blocks were made", |report| report.stats.scan.made == WORTH + 2)
        .checks("all by copying but the one", |report| {
            (report.stats.copied, report.stats.collapsed) == (WORTH + 1, 1)
        })
        .checks("holes were filled", |report| report.stats.filled == 2 * HOLES)
        .checks("each waited for a second scan that saw the same", |report| {
            report.stats.scan.waits == report.stats.scan.made
        })
        .checks("what was split was left alone for eight scans", |report| {
            (report.stats.split, report.stats.scan.rests) == (1, 8)
        })
        .checks("nothing failed", |report| report.stats.scan.failed == 0);
}

on_every_cpu!(a_guest_asks_for_scans, |cpu| {
    hysteresis(settle("call").cpu(cpu).vcpus(1).passes());
});

/// When a scan comes by is up to the CPUs: it may find another span worth it while the guest still fills it, or when the
/// guest has verified the holes at the end.
#[track_caller]
fn idle(run: Run) {
    run.checks("blocks were made", |report| report.stats.scan.made >= WORTH)
        .checks("by copying", |report| report.stats.copied == report.stats.scan.made)
        .checks("holes were filled", |report| report.stats.filled >= HOLES)
        .checks("by idle CPUs", |report| report.stats.scan.idle > 0)
        .checks("in two scans at the least", |report| report.stats.scan.passes >= 1)
        .checks("each waited", |report| report.stats.scan.waits >= WORTH);
}

on_every_cpu!(cpus_whose_vcpus_are_off_scan, |cpu| {
    idle(settle("idle").cpu(cpu).vcpus(4).timeout(120).passes());
});

#[test]
fn cpus_without_a_vcpu_scan() {
    idle(settle("idle").vcpus(1).with("--smp", 3).timeout(120).passes());
}

#[test]
fn a_cpu_whose_guest_waits_scans() {
    idle(settle("wfi").vcpus(1).timeout(120).passes());
}

/// What the guest says that a scan takes, in instructions, with so much RAM.
#[track_caller]
fn cost(guest_mem: &str) -> u64 {
    let run = settle("call").vcpus(1).flag("--icount").with("--guest-mem", guest_mem).passes();
    let (_, rest) = run.console().split_once("that makes no block takes ").unwrap();
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

/// Of RAM's spans four are tables in both; the others are blocks or nothing.
#[test]
fn a_scan_takes_few_instructions_for_a_table_and_for_a_span_without_one() {
    let (small, large) = (cost("64M"), cost("256M"));
    // By RAM's 32 and 128 spans.
    let each = (large - small) / (128 - 32);
    assert!((1..250).contains(&each), "{each} instructions for a span without a table");
    let table = (small - 28 * each) / 4;
    assert!((512..16_000).contains(&table), "{table} instructions for a table");
}

#[test]
fn what_a_cpu_without_a_vcpu_does_is_sound() {
    let trace = Trace::none();
    let guest = settle("idle").vcpus(2).with("--smp", 3).flag("--icount");
    guest.trace(&trace.path()).timeout(120).passes().checks("a CPU was idle", |report| {
        report.stats.scan.idle > 0 && report.stats.scan.made >= WORTH
    });
    trace.check().exits(0).shows("of 3 PEs, in total order").shows("verdicts             none");
}

#[test]
fn a_program_that_knows_nothing_of_it_runs_on() {
    let script = "expect Hit any key\nsend-raw \\x20\nexpect =>\n\
                  send mw.l 0x42000000 0xcafef00d 80000\nexpect =>\n\
                  send sleep 1\nexpect =>\n\
                  send md.l 0x421ffff0 4\nexpect cafef00d cafef00d cafef00d cafef00d\nexpect =>\n\
                  send poweroff\n";
    let uboot = Scenario::of("u-boot").with("--guest-mem", "128M").vcpus(2).script(script);
    uboot
        .flag("--scan")
        .timeout(90)
        .passes()
        .checks("idle CPUs scanned", |report| report.stats.scan.looked > 0);
}

#[test]
fn without_the_option_ram_stays_in_pages() {
    Scenario::of("settle")
        .vcpus(1)
        .run()
        .exits(1)
        .shows("the hypervisor keeps RAM in pages")
        .checks("nothing was looked at", |report| report.stats.scan.looked == 0);
}

/// Two lives: the memory of each comes back, with what is remembered of spans, while idle CPUs scan what the guest moves,
/// splits and collapses.
#[test]
fn a_vm_that_is_reset_while_cpus_scan_leaves_nothing() {
    let least = "min-drained=0 min-freed=0 min-lost=0 min-split=6 min-collapsed=6";
    Scenario::of("churn")
        .vcpus(3)
        .with("--smp", 4)
        .append(&format!("moves=60 seconds=60 reset=1 {least}"))
        .flag("--blocks")
        .flag("--scan")
        .with("--restarts", 1)
        .alone()
        .timeout(150)
        .passes()
        .checks("two lives", |report| report.lives == 2)
        .checks("a CPU without a vCPU scanned", |report| report.stats.scan.idle > 0);
}
