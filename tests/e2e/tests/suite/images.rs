//! The image alone: what the README tells people to type works without `hypctl`.

use std::process::Command;
use std::time::Duration;

use e2e::bounded::{self, Ended};
use e2e::plain::{NONCE, qemu};
use e2e::{Scenario, host, image, images, on_every_cpu};
use hyp_core::report::Outcome;
use hypctl::workspace::Variant;

const NONE: [&str; 0] = [];

/// What a shell makes of a line, within a minute.
#[track_caller]
fn shell(line: &str) -> Ended {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]);
    let _host = host::shared();
    bounded::run(&mut shell, b"", Duration::from_secs(60)).unwrap()
}

#[test]
fn the_line_of_the_readme_runs_the_embedded_guest() {
    const IMAGE: &str = "target/bare/images/hyp.bin";
    let readme = std::fs::read_to_string(images().root().join("README.md")).unwrap();
    let start = readme.find("qemu-system-aarch64 -M").expect("README gives a line");
    let end = readme[start..].find(IMAGE).expect("the line names the image") + IMAGE.len();
    let line = &readme[start..start + end];
    let ended = shell(&line.replace(IMAGE, &image().display().to_string()));
    assert!(ended.status.is_some_and(|status| status.success()), "{line}: {ended:?}");
    for words in ["hello from vCPU 1 of 2", "the guest's verdict is pass", "pages installed"] {
        assert!(ended.stdout.contains(words), "no {words:?} from {line}: {ended:?}");
    }
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
    let pasted = shell(line);
    assert!(pasted.stdout.contains("touch: 1 vCPUs"), "{run}{pasted:?}");
}
