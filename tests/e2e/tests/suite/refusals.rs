//! What the hypervisor refuses to start on, and that it names both sides.
//!
//! `hypctl` makes no such machines, so most of these are plain QEMU lines. Each also asks for the
//! report: a refusal reaches programs as exit code 4.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::plain::{NONCE, qemu};
use e2e::{Run, Scenario, image};
use hyp_core::report::Outcome;
use tempfile::TempDir;

/// Expects a refusal with these words in its reason.
#[track_caller]
fn refuses(arguments: &[String], words: &str, reason: &[&str]) -> Run {
    let append = format!("{words} report={NONCE}");
    let arguments = arguments.iter().cloned().chain(["-append".into(), append]);
    let run = qemu(&image(), arguments).exits(0).shows("hyp: ");
    let report = run.report();
    assert_eq!((report.outcome, report.exit_code), (Outcome::Refused, 4), "{run}");
    let said = report.reason.unwrap_or_default();
    for word in reason {
        assert!(said.contains(word), "the reason {said:?} has no {word:?}\n{run}");
    }
    run.shows(&said)
}

/// Modules are 64 KiB of an instruction that branches to itself.
fn blob(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("blob");
    std::fs::write(&path, [0, 0, 0, 0x14].repeat(16 << 10)).unwrap();
    path
}

fn loader(kind: &str, path: &Path, at: u64) -> [String; 2] {
    ["-device".into(), format!("guest-loader,addr={at:#x},{kind}={}", path.display())]
}

#[track_caller]
fn refuses_module_at(at: u64, reason: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    refuses(&loader("kernel", &blob(&folder), at), "", reason);
}

#[test]
fn a_module_over_the_image_names_both() {
    refuses_module_at(0x4020_0000, &["image at 0x40200000-", "module at 0x40200000-0x4020ffff"]);
}

#[test]
fn a_module_over_the_zeroed_part_of_the_image_names_both() {
    let loaded = std::fs::metadata(image()).unwrap().len();
    let at = 0x4020_0000 + loaded.next_multiple_of(4096);
    let module = format!("module at {at:#x}-");
    refuses_module_at(at, &["image at 0x40200000-", &module]);
}

#[test]
fn a_module_under_the_device_tree_names_both() {
    refuses_module_at(0x4800_0000, &["device tree at 0x48000000-", "module at 0x48000000-"]);
}

#[test]
fn a_module_outside_ram_names_both() {
    refuses_module_at(0x8000_0000, &["0x80000000-0x8000ffff", "RAM", "0x40000000-0x5fffffff"]);
}

#[test]
fn a_module_across_the_end_of_ram_names_both() {
    refuses_module_at(0x5fff_8000, &["0x5fff8000-0x60007fff", "0x40000000-0x5fffffff"]);
}

#[test]
fn overlapping_modules_are_named_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let path = blob(&folder);
    let at = |kind, at| loader(kind, &path, at);
    let extra = [at("kernel", 0x5000_0000), at("initrd", 0x5000_1000)].concat();
    let extra: Vec<_> = extra.iter().map(String::as_str).collect();
    Scenario::of("hello").qemu(&extra).run().exits(6).says("regions overlap");
}

/// The tree that QEMU makes for the machine of [`qemu`] with `modules`.
#[track_caller]
fn dump(folder: &TempDir, modules: &[[String; 2]]) -> PathBuf {
    let tree = folder.path().join("tree");
    let dumped = Command::new(hypctl::qemu::PROGRAM)
        .args(["-cpu", "max", "-smp", "2", "-m", "512M", "-nic", "none", "-display", "none"])
        .args(["-M", "virt,virtualization=on,gic-version=3,dtb-randomness=off", "-M"])
        .arg(format!("dumpdtb={}", tree.display()))
        .args(modules.concat())
        .output()
        .unwrap();
    assert!(tree.is_file(), "QEMU dumps no tree: {dumped:?}");
    tree
}

#[test]
fn a_tree_as_qemu_dumps_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let tree = dump(&folder, &[]);
    qemu(&image(), ["-dtb".as_ref(), tree.as_os_str()]).exits(0).shows("hello from vCPU 1 of 2");
}

#[test]
fn overlapping_modules_of_a_foreign_tree_are_named_by_the_hypervisor() {
    let folder = tempfile::tempdir().unwrap();
    let path = blob(&folder);
    let modules = [loader("kernel", &path, 0x5000_0000), loader("initrd", &path, 0x5002_0000)];
    let tree = dump(&folder, &modules);
    let mut bytes = std::fs::read(&tree).unwrap();
    // The initrd's `reg`, as the tree has it, moved into the kernel.
    let reg = |at: u64| [at.to_be_bytes(), (64_u64 << 10).to_be_bytes()].concat();
    let places = bytes.windows(16).enumerate().filter(|(_, it)| *it == reg(0x5002_0000));
    let places: Vec<_> = places.map(|(place, _)| place).collect();
    assert_eq!(places.len(), 1, "the initrd's reg is in the tree once");
    bytes[places[0]..places[0] + 16].copy_from_slice(&reg(0x5000_8000));
    std::fs::write(&tree, bytes).unwrap();
    let dtb = ["-dtb".into(), tree.display().to_string()];
    refuses(&dtb, "", &["0x50000000-0x5000ffff", "0x50008000-0x50017fff"]);
}

#[test]
fn a_start_below_el2_says_what_is_needed() {
    refuses(&["-M".into(), "virtualization=off".into()], "", &["EL2", "EL1", "virtualization=on"]);
}

#[test]
fn an_unknown_word_is_named() {
    refuses(&[], "vcpu=2", &["\"vcpu=2\"", "vcpus=N"]);
}

#[test]
fn words_that_cannot_be_read_are_named_with_what_would_do() {
    refuses(&[], "vcpus=0", &["vcpus=\"0\"", "1 to 8"]);
    refuses(&[], "vcpus=9", &["vcpus=\"9\"", "1 to 8"]);
    refuses(&[], "mem=12345", &["mem=\"12345\"", "64M"]);
    refuses(&[], "vcpus=1 vcpus=2", &["vcpus is given twice"]);
}

#[test]
fn numbers_that_the_machine_cannot_give_are_named_with_the_bounds() {
    refuses(&[], "mem=1M", &["mem=1 MiB", "8 MiB"]);
    refuses(&[], "mem=4G", &["mem=4 GiB", "are free"]);
}

#[test]
fn measuring_without_the_means_is_refused() {
    refuses(&[], "measure", &["measure", "feature"]);
}

#[test]
fn a_machine_too_small_for_any_guest_is_refused() {
    refuses(&["-m".into(), "12M".into()], "", &["too small", "8 MiB"]);
}

#[test]
fn a_guest_that_is_no_image_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("elf");
    std::fs::write(&path, b"\x7fELF\x02\x01\x01 and more").unwrap();
    refuses(&loader("kernel", &path, 0x5000_0000), "", &["an ELF file", "objcopy"]);
}

#[test]
fn a_guest_too_large_for_its_memory_is_refused_with_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    std::fs::write(&path, vec![0x14; 16 << 20]).unwrap();
    refuses(&loader("kernel", &path, 0x5000_0000), "mem=16M", &["18 MiB", "16 MiB"]);
}

#[test]
fn a_refusal_is_an_exit_code_of_hypctl() {
    Scenario::of("hello")
        .qemu(&["-M", "virtualization=off"])
        .run()
        .exits(4)
        .checks("refused", |report| report.outcome == Outcome::Refused);
}

#[test]
fn recovery_windows_that_cannot_be_are_refused_with_their_places() {
    for (windows, reason) in [
        (
            "scratch@0x08fff000+8K",
            &["recovery window 0x8fff000-0x9000fff", "the device at 0x9000000-0x9000fff"][..],
        ),
        (
            "stop@0x43fff000+8K",
            &["recovery window 0x43fff000-0x44000fff a part is RAM", "0x40000000-0x43ffffff"],
        ),
        ("inject@0x50000001+4K", &["whole pages of 4 KiB", "0x50000001-0x50001000"]),
        (
            "inject@0x50000000+1G,scratch@0xa0000000+4K",
            &["recovery windows of", "outside of RAM are too large: 1 GiB may be"],
        ),
    ] {
        refuses(&[], &format!("mem=64M recover={windows}"), reason);
    }
}
