//! Debian's Linux, unmodified: kernels 6.1 and 6.12 come up with two vCPUs on every CPU model.
//!
//! `hypctl linux` itself fails a run in which a vCPU did not come up or the kernel complained of anything.

use e2e::{Run, Scenario, on_every_cpu};
use hyp_core::report::Outcome;

/// A kernel with a script. Bounds are generous: a boot takes seconds, and many of them on a busy host.
fn linux(kernel: &str, script: &str) -> Scenario {
    Scenario::linux().with("--kernel", kernel).with("--script", script).timeout(300)
}

/// Works on both vCPUs: sleeps by the timer, sends interrupts between them, talks to the UART, and leaves a word in the log.
const WORK: &str = "
    cd /tmp
    for cpu in 0 1; do
        taskset -c $cpu sh -c 'dd if=/dev/urandom of=f'$cpu' bs=64k count=16 2>/dev/null; sleep 0.1; md5sum f'$cpu' > m'$cpu &
    done
    wait
    md5sum -c m0 m1 || exit 1
    grep -E 'arch_timer|IPI0' /proc/interrupts
    echo the script has come through";

#[track_caller]
fn comes_up(kernel: &str, cpu: &str) {
    let run = linux(kernel, WORK)
        .cpu(cpu)
        .run()
        .exits(0)
        .shows_in_order(&[
            "init: started",
            ", 2 CPUs",
            "f0: OK",
            "f1: OK",
            "come through",
            "Power down",
        ])
        .checks("it powered off", |report| report.outcome == Outcome::PoweredOff)
        .checks("it had both vCPUs", |report| report.vcpus == 2);
    let release = run.summary("boot/up/release").as_str().unwrap();
    assert!(release.starts_with(&format!("{kernel}.")), "{release}{run}");
    let seconds = run.summary("boot/seconds").as_f64().unwrap();
    println!("Linux {release} on {cpu}: {seconds:.1} s to its first program");
}

on_every_cpu!(debians_6_12_comes_up_works_and_powers_off, |cpu| comes_up("6.12", cpu));

on_every_cpu!(debians_6_1_comes_up_works_and_powers_off, |cpu| comes_up("6.1", cpu));

/// QEMU alone takes the guest's device tree: what it says is true of a machine that is not ours.
#[test]
fn the_guests_device_tree_is_right_for_qemu_alone() {
    let run = linux("6.12", WORK).flag("--plain").run().exits(0);
    assert_eq!(run.ended_by(), "exited");
    run.shows("come through").shows_no("hyp: ");
}

#[test]
fn a_scripts_status_is_the_verdict() {
    let run = linux("6.12", "echo before; exit 7").flag("--plain").run().exits(1);
    assert_eq!(run.summary("boot/end/status"), 7);
    run.shows("before").says("the script's status is 7");
}

#[test]
fn a_complaint_of_the_kernel_is_no_pass() {
    let script = "echo 'BUG: this is how it looks' > /dev/kmsg; true";
    let run = linux("6.12", script).flag("--plain").run().exits(1);
    assert_eq!(run.summary("boot/end/complaints"), 1);
    run.shows("this is how it looks").says("the kernel complained");
}

#[test]
fn a_panic_ends_the_run_and_is_no_pass() {
    linux("6.12", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60")
        .run()
        .exits(1)
        .shows("Kernel panic")
        .says("the guest ended before its script did");
}

/// Nothing that cannot come up is started.
#[track_caller]
fn refused(scenario: Scenario, words: &[&str]) -> Run {
    let run = scenario.before_the_build().run().exits(2);
    words.iter().fold(run, |run, word| run.says(word))
}

#[test]
fn a_file_that_is_no_kernel_is_named_with_what_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, words) in [
        ("vmlinuz.gz", &b"\x1f\x8b\x08\0rest"[..], "compressed by gzip; unpack it first"),
        ("vmlinux", b"\x7fELF\x02\x01\x01", "an ELF file; flatten it first: objcopy -O binary"),
        ("zboot", b"MZ\0\0zimg", "a compressed EFI kernel (zboot)"),
        ("noise", &[7; 4096], "Linux is wanted, as a raw arm64 Image"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let scenario = Scenario::linux().with("--kernel", path.display());
        refused(scenario, &[&path.display().to_string(), words]);
    }
}

#[test]
fn too_little_memory_is_refused_with_what_would_do() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("Image");
    let mut head = vec![0; 4096];
    head[16..24].copy_from_slice(&(32 * MIB).to_le_bytes());
    head[56..60].copy_from_slice(b"ARMd");
    std::fs::write(&kernel, head).unwrap();
    // 2 MiB, the kernel, the initramfs; that again, unpacked; and 20 MiB to work with.
    for (initrd, mem, loaded, needed) in [(1, 55, 35, 56), (300, 512, 334, 654)] {
        let path = folder.path().join("initrd");
        std::fs::File::create(&path).unwrap().set_len(initrd * MIB).unwrap();
        let scenario = Scenario::linux()
            .with("--kernel", kernel.display())
            .with("--initrd", path.display())
            .with("--mem", format!("{mem}M"));
        let words = [
            format!("--mem {mem} MiB is too little"),
            format!("{needed} MiB are needed"),
            format!("up to {loaded} MiB"),
            format!("unpacked at least {initrd} MiB"),
        ];
        refused(scenario, &words.each_ref().map(String::as_str));
    }
}
