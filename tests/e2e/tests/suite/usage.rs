//! Mistakes at the prompt: exit code 2, a sentence that helps, and no QEMU.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::{Run, Scenario, bounded, hypctl};
use tempfile::TempDir;

/// Files that are not what they should be.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

#[track_caller]
fn refused(scenario: Scenario) -> Run {
    let run = scenario.run().exits(2).never_started();
    assert!(run.messages().lines().any(|line| line.starts_with("hypctl: ")), "{run}");
    run
}

#[track_caller]
fn bad_image(name: &str, content: &[u8]) -> Run {
    let files = Files::new();
    let path = files.with(name, content);
    refused(Scenario::of(&path).before_the_build()).says(&path.display().to_string())
}

#[test]
fn an_unknown_guest_lists_the_known_ones() {
    refused(Scenario::of("helo").before_the_build()).says("no guest `helo`").says("hello");
}

#[test]
fn a_wrong_path_is_named() {
    refused(Scenario::of("./no/such/Image").before_the_build())
        .says("./no/such/Image")
        .says("no such");
}

#[test]
fn a_folder_is_no_image() {
    refused(Scenario::of("/tmp/").before_the_build()).says("folder");
}

#[test]
fn an_elf_is_named_as_one() {
    bad_image("vmlinux", b"\x7fELF\x02\x01\x01rest").says("an ELF file").says("objcopy -O binary");
}

#[test]
fn packed_and_wrapped_images_are_named() {
    bad_image("Image.gz", b"\x1f\x8b\x08\0rest").says("gzip").says("unpack");
    bad_image("uImage", b"\x27\x05\x19\x56rest").says("U-Boot legacy image");
    bad_image("fit.itb", b"\xd0\x0d\xfe\xedrest").says("flattened tree");
    bad_image("initrd.cpio", b"070701rest").says("cpio");
}

#[test]
fn an_empty_image_is_named() {
    bad_image("empty", b"").says("empty");
}

#[test]
fn a_big_endian_kernel_is_named() {
    let mut head = [0; 64];
    head[24] = 1;
    head[56..60].copy_from_slice(b"ARMd");
    bad_image("Image", &head).says("big-endian");
}

#[test]
fn a_missing_initrd_is_named() {
    refused(Scenario::of("hello").before_the_build().with("--initrd", "/no/initrd"))
        .says("initrd /no/initrd");
}

#[test]
fn a_guest_memory_that_cannot_hold_the_image_names_both_sizes() {
    let files = Files::new();
    let path = files.with("raw", &vec![0x1f; 20 << 20]);
    refused(Scenario::of(&path).before_the_build().with("--guest-mem", "16M"))
        .says("22 MiB")
        .says("16 MiB");
}

#[test]
fn a_guest_memory_below_the_least_is_refused_with_both_sizes() {
    refused(Scenario::of("hello").before_the_build().with("--guest-mem", "4M"))
        .says("4 MiB")
        .says("8 MiB");
}

#[test]
fn a_machine_that_cannot_hold_the_guest_names_both_sizes() {
    refused(Scenario::of("touch").with("--mem", "64M").with("--guest-mem", "64M"))
        .says("--mem 64 MiB")
        .says("guest RAM 64 MiB");
}

#[test]
fn a_cpu_that_qemu_lacks_is_named() {
    refused(Scenario::of("hello").before_the_build().cpu("cortex-m99"))
        .says("no CPU model `cortex-m99`")
        .says("neoverse-n2");
}

#[test]
fn numbers_without_sense_are_refused() {
    for (option, value) in [("--vcpus", "0"), ("--vcpus", "9"), ("--mem", "12"), ("--smp", "x")] {
        let run = Scenario::of("hello").before_the_build().with(option, value).run();
        run.exits(2).says(option);
    }
}

#[test]
fn a_script_with_a_mistake_names_the_line() {
    let scenario = Scenario::of("hello").before_the_build().script("send a\nexpct b\n");
    refused(scenario).says("line 2").says("expct b");
}

#[test]
fn a_summary_that_cannot_be_written_is_refused_early() {
    let run = Scenario::of("hello").before_the_build().with("--json", "/no/folder/a.json").run();
    run.exits(2);
}

/// A shell script that answers like a QEMU of this version with these CPU models, and otherwise
/// does `rest`.
fn emulator(files: &Files, version: &str, models: &str, rest: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\ncase \"$1 $2\" in\n\
         '--version ') echo 'QEMU emulator version {version}' ;;\n\
         '-cpu help') printf 'Available CPUs:\\n{models}\\n' ;;\n\
         *) {rest} ;;\nesac\n"
    );
    let path = files.with("qemu", script.as_bytes());
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_missing_emulator_is_named() {
    let scenario = Scenario::of("hello").before_the_build().emulator("/no/such/qemu");
    refused(scenario).says("/no/such/qemu").says("./just setup");
}

#[test]
fn an_emulator_that_is_too_old_names_both_versions() {
    let files = Files::new();
    let old = emulator(&files, "6.2.0 (Debian)", "  max", "exit 1");
    refused(Scenario::of("hello").before_the_build().emulator(old)).says("6.2.0").says("7.2.0");
}

#[test]
fn an_emulator_without_the_cpu_names_the_model() {
    let files = Files::new();
    let qemu = emulator(&files, "7.2.22", "  cortex-a53\\n  max", "exit 1");
    refused(Scenario::of("hello").before_the_build().cpu("neoverse-n2").emulator(qemu))
        .says("7.2.22")
        .says("no CPU model `neoverse-n2`");
}

#[test]
fn an_emulator_that_fails_is_quoted() {
    let files = Files::new();
    let qemu = emulator(&files, "10.0.2", "  max", "echo 'no memory left' >&2; exit 1");
    let run = Scenario::of("hello").emulator(qemu).run().exits(6);
    assert_eq!(run.ended_by(), "no-report", "{run}");
    run.says("QEMU ended without a report").says("no memory left");
}

fn doctor(qemu: Option<&str>) -> bounded::Ended {
    let mut command = Command::new(hypctl());
    command.args(["doctor", "--json"]).envs(qemu.map(|qemu| ("HYPCTL_QEMU", qemu)));
    bounded::run(&mut command, b"", Duration::from_secs(60)).unwrap()
}

#[test]
fn the_doctor_finds_all_that_these_tests_need() {
    let ended = doctor(None);
    assert_eq!(ended.status.and_then(|status| status.code()), Some(0), "{ended:?}");
    let found: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let is_ok = |what: &str| {
        let findings = found["findings"].as_array().into_iter().flatten();
        findings.filter(|it| it["what"] == what).all(|it| it["state"] == "ok")
    };
    assert!(["toolchain", "cargo", "QEMU", "CPU models"].into_iter().all(is_ok), "{found:#}");
}

#[test]
fn the_doctor_names_what_is_missing() {
    let ended = doctor(Some("/no/such/qemu"));
    assert_eq!(ended.status.and_then(|status| status.code()), Some(2), "{ended:?}");
    assert!(ended.stdout.contains("missing") && ended.stdout.contains("/no/such/qemu"));
}
