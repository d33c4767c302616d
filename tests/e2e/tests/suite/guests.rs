//! Our own guests pass on every CPU model.

use e2e::{Run, Scenario, on_every_cpu};
use hyp_core::report::{Outcome, Stats};

on_every_cpu!(hello, |cpu| {
    Scenario::of("hello")
        .cpu(cpu)
        .vcpus(2)
        .passes()
        .shows("hello from vCPU 1 of 2")
        .shows("pages installed")
        .checks("the verdict is pass", |report| report.outcome == Outcome::Verdict(0))
        .checks("pages were populated on demand", |report| report.stats.installed > 0);
});

on_every_cpu!(attrs, |cpu| {
    Scenario::of("attrs").cpu(cpu).vcpus(2).passes();
});

on_every_cpu!(touch_with_1_vcpu, |cpu| touch(cpu, 1));
on_every_cpu!(touch_with_2_vcpus, |cpu| touch(cpu, 2));
on_every_cpu!(touch_with_4_vcpus, |cpu| touch(cpu, 4));

/// Lost races that the guest itself insists on; see its `races.rs`. (A lost *table* race is too rare
/// for a single run: the emulator's own lock keeps two faults apart.)
const AT_LEAST: u64 = 16;

#[track_caller]
fn touch(cpu: &str, vcpus: u32) {
    // The guest itself fails unless races were lost; the host's view must agree with it.
    let scenario = Scenario::of("touch").cpu(cpu).vcpus(vcpus).timeout(120);
    let run = if vcpus == 1 { scenario } else { scenario.alone() }.passes();
    let stats = run.report().stats;
    let (lost, lost_tables) = (stats.lost_races, stats.lost_tables);
    let run = run.checks("every installed page had its fault", |_| stats.faults >= stats.installed);
    if vcpus == 1 {
        run.checks("a vCPU alone loses no race", |_| lost == 0 && lost_tables == 0);
    } else {
        run.checks("more races were lost than by chance", |_| lost > AT_LEAST);
    }
}

#[test]
fn the_embedded_guest_and_the_loaded_one_are_the_same() {
    let embedded = Scenario::of("hello").passes();
    let loaded = Scenario::of("hello").append("").passes();
    assert_eq!(embedded.report().vcpus, loaded.report().vcpus, "{embedded}{loaded}");
}

#[test]
fn eight_vcpus_come_up() {
    Scenario::of("hello").vcpus(8).passes().shows("hello from vCPU 7 of 8");
}

#[test]
fn fewer_vcpus_than_cpus_leave_the_rest_alone() {
    Scenario::of("hello")
        .with("--smp", 4)
        .vcpus(2)
        .passes()
        .checks("two vCPUs", |report| report.vcpus == 2);
}

#[test]
fn guest_memory_is_what_was_asked_for() {
    Scenario::of("wild")
        .append("case=fill")
        .with("--guest-mem", "16M")
        .passes()
        .checks("16 MiB", |report| report.guest_mem == 16 << 20);
}

#[test]
fn memory_is_populated_on_demand_only() {
    Scenario::of("hello")
        .with("--guest-mem", "256M")
        .passes()
        .checks("a small part of 65536 pages", |report| report.stats.installed < 4096);
}

#[test]
fn an_initrd_lies_behind_the_image_and_is_zero_behind_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd,with comma");
    std::fs::write(&path, vec![0x5a; (5 << 20) + 4]).unwrap();
    // The guest reports what it found where the image's 2 MiB end, as a survived wild access.
    let read = |ipa: u64| {
        let guest = Scenario::of("wild").append(&format!("case=read at={ipa:#x}"));
        guest.with("--initrd", path.display()).run().exits(1)
    };
    read(0x4040_0000).shows("IPA 0x40400000 gave 0x5a5a5a5a5a5a5a5a");
    read(0x4090_0000).shows("IPA 0x40900000 gave 0x5a5a5a5a (");
}

#[test]
fn a_guest_larger_than_half_of_a_small_machine_gets_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd");
    std::fs::write(&path, vec![0x5a; 40 << 20]).unwrap();
    let guest = Scenario::of("wild").append("case=off").with("--mem", "112M");
    let run = guest.with("--initrd", path.display()).passes();
    run.checks("room for the initrd", |report| report.guest_mem >= 44 << 20);
}

// Memory moves into blocks: scattered pages, and the guest's own image. The guest knows every number.
on_every_cpu!(copies, |cpu| {
    Scenario::of("copies")
        .cpu(cpu)
        .vcpus(1)
        .flag("--blocks")
        .passes()
        .checks("each block was copied", |report| report.stats.copied == 6)
        .checks("holes were filled", |report| (1..512).contains(&report.stats.filled))
        .checks("old pages and new blocks were cleaned, unless write-back is forced", |report| {
            // Six blocks, and five that were there before; of each page that was copied the old frame, before it is
            // read and when it is poisoned.
            let (frames, copied) = ((6 + 5) * 512, 6 * 512 - report.stats.filled);
            let cleaned = report.stats.caches.frames_cleaned;
            if report.cpu_features.contains("FWB") {
                cleaned == 0
            } else {
                cleaned >= frames + 2 * copied + 3 * report.stats.moved
            }
        });
});

#[test]
fn nothing_is_copied_where_ram_is_populated_by_pages() {
    let run = Scenario::of("copies").append("blocks=0").passes();
    run.checks("nothing was copied", |report| report.stats.copied == 0);
}

// Memory is moved under vCPUs that work with it; the guest verifies every word.
on_every_cpu!(churn, |cpu| {
    let run = Scenario::of("churn")
        .cpu(cpu)
        .vcpus(4)
        .append("moves=40 seconds=60 min-freed=8 min-lost=1 reset=1");
    // Each life has to pass, and its memory to come back, while the vCPUs work with it.
    run.with("--restarts", 1)
        .alone()
        .timeout(150)
        .passes()
        .checks("two lives", |report| report.lives == 2 && report.outcome == Outcome::Reset)
        .checks("pages were moved", |report| report.stats.moved > 500)
        .checks("faults met what was being taken away", |report| report.stats.drained > 0)
        .checks("tables were given back", |report| report.stats.tables_freed >= 8);
});

// The same in RAM that is populated by blocks, whose sizes change under the vCPUs, too.
on_every_cpu!(churn_with_blocks, |cpu| churn_with_blocks_and(cpu, 2));

/// CPUs with FEAT_BBM, which is made use of up to a level: 0 is break-before-make, 1 the nT bit.
mod churn_with_bbm_held_down {
    use super::churn_with_blocks_and;

    #[test]
    fn max_to_0() {
        churn_with_blocks_and("max", 0).shows("BBM 0,");
    }

    #[test]
    fn max_to_1() {
        churn_with_blocks_and("max", 1).shows("BBM 1,");
    }

    #[test]
    fn neoverse_n2_to_0() {
        churn_with_blocks_and("neoverse-n2", 0).shows("BBM 0,");
    }

    #[test]
    fn neoverse_n2_to_1() {
        churn_with_blocks_and("neoverse-n2", 1).shows("BBM 1,");
    }
}

/// RAM populated by pages, so most of it is holes; a CPU that has no vCPU makes blocks of it, too, meanwhile.
#[test]
fn churn_beside_a_cpu_that_scans() {
    let run = Scenario::of("churn").vcpus(4).with("--smp", 5).flag("--scan");
    resized(run, "min-filled=1000")
        .checks("holes were filled", |report| report.stats.filled >= 1000)
        .checks("an idle CPU scanned", |report| report.stats.scan.idle > 0);
}

#[track_caller]
fn churn_with_blocks_and(cpu: &str, bbm: u8) -> Run {
    let run = Scenario::of("churn").cpu(cpu).vcpus(4).hypervisor(&format!("bbm={bbm}"));
    resized(run.flag("--blocks"), "min-filled=100")
        .checks("blocks were populated", |report| report.stats.blocks >= 8)
        .checks("holes were filled", |report| report.stats.filled >= 100)
}

/// The guest itself fails unless each has happened as often as it is told here; the host's view must agree.
#[track_caller]
fn resized(churn: Scenario, words: &str) -> Run {
    const AT_LEAST: u64 = 12;
    let words = format!(
        "moves=60 seconds=90 min-drained=20 min-freed=20 min-lost=0 min-split={AT_LEAST} \
         min-collapsed={AT_LEAST} min-copied={AT_LEAST} min-runs=64 min-dissolved=32 {words}"
    );
    churn
        .append(&words)
        .alone()
        .timeout(150)
        .passes()
        .checks("blocks were split", |report| report.stats.split >= AT_LEAST)
        .checks("in the way that FEAT_BBM allows", |report| {
            let Stats { split, split_marked, split_live, .. } = report.stats;
            let is = |level: &str| report.cpu_features.contains(level);
            let by = [is("BBM 0,"), is("BBM 1,"), is("BBM 2,")].map(|it| u64::from(it) * split);
            by == [split - split_marked - split_live, split_marked, split_live]
        })
        .checks("blocks were made again in place", |report| report.stats.collapsed >= AT_LEAST)
        .checks("blocks were made of copies", |report| report.stats.copied >= AT_LEAST)
        .checks("runs were made", |report| report.stats.runs >= 64)
        .checks("runs were dissolved", |report| report.stats.dissolved >= 32)
}

#[test]
fn one_vcpu_has_nobody_to_move_memory_under() {
    Scenario::of("churn").vcpus(1).run().exits(1).shows("churn needs two vCPUs");
}

/// All vCPUs ask for everything at once, with arguments right and wrong; the guest judges the answers, and verifies its words
/// in between. That memory comes back is checked of every run: here, too, if the VM ends while calls are under way.
#[track_caller]
fn storm(cpu: &str, bbm: &str, end: u32) -> Run {
    let calls = if end == 0 { 120 } else { 100 };
    Scenario::of("storm")
        .cpu(cpu)
        .vcpus(4)
        .append(&format!("calls={calls} end={end}"))
        .flag("--blocks")
        .hypervisor(bbm)
        .timeout(120)
        .with("--restarts", 1)
        .passes()
        .checks("calls were served", |report| report.stats.moved + report.stats.split > 0)
}

on_every_cpu!(storm_of_calls, |cpu| {
    storm(cpu, "bbm=2", 0).checks("the verdict is pass", |it| it.outcome == Outcome::Verdict(0));
});

#[test]
fn a_vm_that_is_switched_off_in_a_storm_of_calls_gives_all_back() {
    storm("max", "bbm=1", 1).checks("it was switched off", |it| it.outcome == Outcome::PoweredOff);
}

#[test]
fn a_vm_that_is_reset_in_a_storm_of_calls_gives_all_back() {
    storm("cortex-a53", "bbm=2", 2)
        .checks("two lives", |it| it.lives == 2 && it.outcome == Outcome::Reset);
}
