//! The image alone: what the README tells people to type works without `hypctl`.

use std::process::Command;

use e2e::plain::{NONCE, qemu};
use e2e::{Scenario, image, images, on_every_cpu};
use hyp_core::report::Outcome;
use hypctl::workspace::Variant;

const NONE: [&str; 0] = [];

#[test]
fn a_plain_line_runs_the_embedded_guest() {
    qemu(&image(), NONE).exits(0).shows_in_order(&[
        "hyp: ",
        "hello from vCPU 1 of 2",
        "hyp: ",
        "pages installed",
    ]);
}

#[test]
fn a_plain_line_prints_no_report_for_programs() {
    qemu(&image(), NONE).exits(0).shows_no("\x1e");
}

on_every_cpu!(the_elf_runs_too, |cpu| {
    let elf = images().hyp_elf(Variant::Plain);
    qemu(&elf, ["-cpu", cpu]).exits(0).shows("hello from vCPU 1 of 2");
});

#[test]
fn the_guest_loader_brings_another_guest() {
    let touch = images().guest_bin("touch");
    let device =
        format!("guest-loader,addr=0x50000000,kernel={},bootargs=pages=64", touch.display());
    let run = qemu(&image(), ["-device", &device, "-append", &format!("vcpus=1 report={NONCE}")]);
    run.exits(0).checks("it passed", |report| report.outcome == Outcome::Verdict(0));
}

#[test]
fn more_memory_than_4_gib_is_fine() {
    qemu(&image(), ["-m", "6G"]).exits(0).shows("hello from vCPU 1 of 2");
}

#[test]
fn the_printed_line_can_be_pasted() {
    let run = Scenario::of("touch").append("pages=64").vcpus(1).flag("--dry-run").run().exits(0);
    let line = run.console().trim();
    assert!(line.starts_with("qemu-system-aarch64 ") && line.lines().count() == 1, "{run}");
    let mut shell = Command::new("sh");
    shell.args(["-c", line]);
    let pasted = e2e::bounded::run(&mut shell, b"", std::time::Duration::from_secs(60)).unwrap();
    assert!(pasted.stdout.contains("touch: 1 vCPUs"), "{run}{pasted:?}");
}
