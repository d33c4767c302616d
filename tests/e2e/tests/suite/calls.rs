//! Calls that change a guest's memory: who may make them, and what they promise.

use e2e::{Scenario, images, on_every_cpu};

fn wild(path: &str) -> Scenario {
    Scenario::of(path).append("case=not-allowed").vcpus(1)
}

/// An image that `hypctl` does not know for one of ours: by its path.
fn foreign() -> String {
    images().guest_bin("wild").display().to_string()
}

#[test]
fn a_guest_that_is_not_allowed_is_told_that_there_are_no_such_calls() {
    wild("wild").flag("--no-manage").passes().shows("calls refused");
    wild(&foreign()).passes().shows("calls refused");
}

#[test]
fn a_guest_that_is_allowed_is_served() {
    for allowed in [wild("wild"), wild(&foreign()).flag("--manage")] {
        allowed.run().exits(1).shows("FAIL: 0xc6000003 of").shows("is 0x0, should be");
    }
}

/// The guest judges every answer, every access and every syndrome itself.
fn protects(cpu: &str) -> Scenario {
    Scenario::of("protects").cpu(cpu).vcpus(4).timeout(120)
}

on_every_cpu!(protections_hold_in_pages, |cpu| {
    let run = protects(cpu).passes();
    run.checks("each was logged once", |it| it.violation_log.total() == it.stats.violations)
        .checks("violations were aborts", |report| report.stats.violations >= 16)
        .checks("pages came back", |report| report.stats.released >= 1 << 16);
});

on_every_cpu!(protections_hold_in_blocks, |cpu| {
    let run = protects(cpu).flag("--blocks").append("blocks=1").passes();
    run.checks("violations were aborts", |report| report.stats.violations >= 16)
        .checks("blocks were split at edges", |report| report.stats.split >= 2);
});

#[test]
fn protections_hold_where_hardware_records_nothing() {
    protects("max").with("--mask", "hw-access").passes();
}
