//! What caches, and errata of a CPU, lead to.
//!
//! A guest switches its caches off and on: the hypervisor has to act, and to do nothing where the machine makes it
//! unnecessary. QEMU has no caches, so the counts are what can be seen; that the right maintenance is chosen for a
//! machine is tested in `stage2::coherency` and `hyp_core::caches`.

use e2e::{Scenario, on_every_cpu};
use hyp_core::caches::{BUDGET, SPAN};
use hyp_core::report::CacheStats;

/// CPU models with FEAT_S2FWB; these have CTR_EL0.DIC too.
const FORCED: [&str; 2] = ["max", "neoverse-n2"];
/// Of both vCPUs together: see the guest's rounds.
const SWITCHES: u64 = 4;
const VCPUS: u64 = 2;
/// Pages of each that lie side by side.
const PAGES: u64 = 96;

on_every_cpu!(caches, |cpu| {
    let pages = format!("pages={PAGES}");
    let run =
        Scenario::of("caches").append(&pages).cpu(cpu).vcpus(VCPUS as u32).timeout(120).passes();
    let forced = FORCED.contains(&cpu);
    let stats = run.report().stats.caches;
    let run = run
        .checks("memory moved while others switched their caches", |report| report.stats.moved > 0)
        .checks("set/way operations trapped", |_| stats.set_way > 0)
        .checks("instruction caches are invalidated unless DIC says no", |_| {
            (stats.instruction_flushes == 0) == forced
        });
    if forced {
        run.checks("where write-back is forced nothing else is done", |_| {
            // `MOVE` cleans nothing either.
            stats == CacheStats { set_way: stats.set_way, ..CacheStats::default() }
        });
        return;
    }
    let report = run.report();
    let (spans, parts) = (report.guest_mem.div_ceil(SPAN), stats.parts);
    // Both vCPUs' pages lie in one span, and are all there before a vCPU switches: a walk for a set/way operation, one
    // off, one on.
    let round_walks = 3 * SWITCHES;
    let more = (VCPUS * PAGES * 4096 / BUDGET - 1) * round_walks;
    run.checks("every populated frame was cleaned", |_| {
        stats.frames_cleaned >= report.stats.installed
    })
    .checks("every switch was seen: on after a start, off and on in a round", |_| {
        stats.toggles == VCPUS + 2 * SWITCHES
    })
    .checks("of a loop of set/way operations only the first cleans", |_| {
        stats.walks == stats.toggles + SWITCHES
    })
    .checks("registers were written while their writes trapped", |_| {
        stats.vm_registers > stats.toggles + 16 * SWITCHES
    })
    .checks("no part looks at more than its span, nor cleans more than its budget", |_| {
        parts >= stats.walks * spans + more
    })
    // Less than all: some are on their way to other frames.
    .checks("there was something to clean", |_| {
        stats.pages_cleaned > round_walks * VCPUS * PAGES / 2
    });
});

// A vCPU that does nothing but start switches its caches on once, and that is seen.
on_every_cpu!(caches_of_a_guest_that_only_starts, |cpu| {
    Scenario::of("hello").cpu(cpu).vcpus(2).passes().checks("two vCPUs, two switches", |report| {
        let expected = if FORCED.contains(&cpu) { 0 } else { VCPUS };
        report.stats.caches.toggles == expected && report.stats.caches.walks == expected
    });
});

/// CPU models whose MIDRs are in the table of errata: broadcast invalidations are repeated.
const REPEATED: [&str; 2] = ["neoverse-n2", "cortex-a76"];

// What is flushed of this guest is flushed as a whole, but for a range at its end: the repeats show.
on_every_cpu!(flushes_are_repeated_where_an_erratum_asks_for_it, |cpu| {
    let run = Scenario::of("hello").cpu(cpu).passes();
    let report = run.report();
    let of = |kind: &str| report.stats.tlbi.get(kind).copied().unwrap_or(0);
    let whole = of("ALLE1IS") + of("VMALLS12E1IS");
    let named = report.cpu_features.contains("errata REPEAT_TLBI");
    run.checks("something was flushed", |_| whole > 1)
        .checks("the report names the erratum where it applies", |_| {
            named == REPEATED.contains(&cpu)
        })
        .checks("each flush is repeated, or none", |_| (of("VMALLE1IS") >= whole) == named);
});

// The other rows of the table, on CPU models that have them: the walks of EL1 are held at EL2 for real when the new VM's
// VMID is flushed, and what cannot be relied on is not used.
#[test]
fn errata_of_further_cpus_are_worked_around() {
    let of = |cpu| Scenario::of("hello").cpu(cpu).vcpus(2).passes();
    of("cortex-a72").checks("speculative walks", |report| {
        report.cpu_features.ends_with("errata SPECULATIVE_AT")
    });
    of("cortex-a55").checks("all but DIC", |report| {
        report.cpu_features.ends_with("errata REPEAT_TLBI SPECULATIVE_AT NO_HW_DIRTY")
            && report.cpu_features.contains("HW_ACCESS")
            && !report.cpu_features.contains(" HW_DIRTY")
    });
    of("neoverse-n1").checks("DIC is not believed", |report| {
        report.cpu_features.ends_with("errata REPEAT_TLBI NO_DIC")
            && report.stats.caches.instruction_flushes > 0
    });
}
