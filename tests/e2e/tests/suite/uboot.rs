//! Debian's U-Boot, unmodified: it boots to its prompt, and its commands work.

use e2e::{Scenario, on_every_cpu};
use hyp_core::report::Outcome;

/// Stops the countdown and waits for the prompt.
const TO_THE_PROMPT: &str = "expect Hit any key\nsend-raw \\x20\nexpect =>\n";

fn uboot(script: &str) -> Scenario {
    Scenario::of("u-boot")
        .with("--guest-mem", "128M")
        .vcpus(1)
        .timeout(90)
        .script(&format!("{TO_THE_PROMPT}{script}"))
}

on_every_cpu!(answers_version_md_mw_and_poweroff, |cpu| {
    let script = "send version\nexpect U-Boot 20\nexpect =>\n\
                  send md.l 0x42000000 1\nexpect 42000000: 00000000\nexpect =>\n\
                  send mw.l 0x42000000 0xcafef00d 4\nexpect =>\n\
                  send md.l 0x42000000 4\nexpect cafef00d cafef00d cafef00d cafef00d\nexpect =>\n\
                  send poweroff\n";
    uboot(script)
        .cpu(cpu)
        .passes()
        .checks("it powered off", |report| report.outcome == Outcome::PoweredOff)
        .checks("the flash was emulated", |report| report.stats.mmio > 1000);
});

#[test]
fn a_read_of_flash_gives_zeroes() {
    uboot("send md.l 0x04000000 1\nexpect 04000000: 00000000\nexpect =>\nsend poweroff\n").passes();
}

#[test]
fn a_wild_read_stops_it_with_a_diagnosis() {
    uboot("send md.l 0x80000000 1\nexpect never\n").run().exits(3).shows_in_order(&[
        "VM 0",
        "PC",
        "ESR",
        "IPA",
        "0x0000000080000000",
        "region",
        "hint",
    ]);
}

#[test]
fn a_reset_boots_it_again() {
    uboot("send reset\nexpect U-Boot 20\nexpect Hit any key\nsend-raw \\x20\nexpect =>\nsend poweroff\n")
        .timeout(120)
        .passes();
}

#[test]
fn the_machine_has_the_memory_that_was_asked_for() {
    uboot("send bdinfo\nexpect size\nexpect 0x0000000008000000\nexpect =>\nsend poweroff\n")
        .passes();
}
