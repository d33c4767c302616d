//! Debian's Linux, unmodified: kernels 6.1 and 6.12 come up with two vCPUs on every CPU model, and with more vCPUs than CPUs; to a
//! shell that is typed into, through a script, from files of one's own.
//!
//! `hypctl linux` itself fails a run in which a vCPU did not come up or the kernel complained of anything.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cpio::newc;
use e2e::keyboard::Session;
use e2e::{Run, Scenario, bounded, host, hypctl, images, on_every_cpu};
use hyp_core::report::Outcome;
use hypctl::catalogue::{self, BUSYBOX, KERNELS};

/// How long a boot and what it is for may take, in seconds. Generous: it takes a tenth of that on an idle host.
const PATIENCE: u64 = 300;

/// What a boot may take under the hypervisor, times the instructions on QEMU alone.
const INSTRUCTIONS: f64 = 1.15;

/// A kernel with a script.
fn linux(kernel: &str, script: &str) -> Scenario {
    Scenario::linux().with("--kernel", kernel).with("--script", script).timeout(PATIENCE)
}

/// Works on all vCPUs: sleeps by the timer of each, sends interrupts between neighbours by waking each other, talks to the UART, and
/// leaves a word in the log. Fails unless each of them took interrupts of its timer and of other vCPUs meanwhile.
const WORK: &str = r#"
    cd /tmp
    last=$(($(nproc) - 1))
    # Interrupts of a kind that each CPU has taken.
    taken() { awk -v of="$1" '$0 ~ of { for (at = 0; at <= '$last'; at++) sum[at] += $(at + 2) }
        END { for (at = 0; at <= '$last'; at++) print sum[at] + 0 }' /proc/interrupts > "$2"; }
    taken arch_timer timers
    taken IPI ipis

    for cpu in $(seq 0 $last); do
        taskset -c $cpu sh -c 'dd if=/dev/urandom of=f'$cpu' bs=64k count=16 2>/dev/null; sleep 0.1; md5sum f'$cpu' > m'$cpu &
    done
    wait
    md5sum -c m* || exit 1

    # A ball goes to and fro between each CPU and the next: whoever waits for it sleeps, and is woken by the other CPU.
    mkfifo there back
    for cpu in $(seq 0 $last); do
        taskset -c $(((cpu + 1) % (last + 1))) sh -c 'while read ball; do echo $ball; done < there > back' &
        taskset -c $cpu sh -c 'exec 3> there 4< back
            for ball in $(seq 50); do echo $ball >&3; read got <&4; [ "$got" = $ball ] || exit 1; done' || exit 2
        wait
    done

    grew() { taken "$1" now
        paste "$2" now | awk -v of="$1" '{ print "CPU " NR - 1 ": " $2 - $1 " interrupts of " of } $2 <= $1 { none = 1 } END { exit none }'; }
    grew arch_timer timers || exit 3
    [ $last = 0 ] || grew IPI ipis || exit 4
    echo the script has come through"#;

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

/// More vCPUs than CPUs come up, wake each other, and power off; the build with selftests asserts that none is ever put aside while
/// it holds something.
#[track_caller]
fn takes_turns(vcpus: u32, cpus: u32) {
    linux("6.12", WORK)
        .vcpus(vcpus)
        .with("--smp", cpus)
        .selftest()
        .timeout(2 * PATIENCE)
        .run()
        .exits(0)
        .shows_in_order(&[&format!(", {vcpus} CPUs"), "come through"])
        .checks("it powered off", |report| report.outcome == Outcome::PoweredOff)
        .checks("it had all vCPUs", |report| report.vcpus == vcpus);
}

#[test]
fn four_vcpus_on_two_cpus_come_up_work_and_power_off() {
    takes_turns(4, 2);
}

#[test]
fn two_vcpus_on_one_cpu_come_up_work_and_power_off() {
    takes_turns(2, 1);
}

/// At a terminal: `hypctl linux` with nothing but the keyboard.
#[test]
fn a_shell_answers_what_is_typed_and_control_d_ends_the_machine() {
    let mut session = Session::start(&["linux"]);
    session.wait_up_to(Duration::from_secs(PATIENCE));
    session.expect("Ctrl-A x ends the run");
    session.expect("this is a shell");
    session.expect("~ # ");
    // Of what is typed the terminal shows each character: an answer is none of that.
    session.press(b"echo CPUs: $(nproc)\r");
    session.expect("CPUs: 2");
    session.expect("~ # ");
    // Ctrl-C is the guest's: it ends what runs there, and not the run. The word comes from a program that has the terminal by then.
    session.press(b"sh -c \"echo sle''eps; sleep 100000\"\r");
    session.expect("sleeps");
    session.press(b"\x03");
    session.expect("~ # ");
    session.press(b"echo 6 x 7 is $((6 * 7))\r");
    session.expect("6 x 7 is 42");
    session.expect("~ # ");
    session.press(b"\x04");
    session.expect("the guest powered off");
    assert_eq!(session.end(), Some(0));
    assert!(!session.is_raw(), "the terminal is left raw");
}

#[test]
fn run_linux_is_a_shell_with_the_options_of_run() {
    Scenario::of("linux")
        .vcpus(2)
        .script("expect ~ #\nsend nproc && uname -m\nexpect \\r\\n2\\r\\naarch64\nexpect ~ #\nsend poweroff\n")
        .timeout(PATIENCE)
        .passes()
        .shows("this is a shell")
        .checks("it powered off", |report| report.outcome == Outcome::PoweredOff);
}

/// The distribution's file, which `./just fetch-linux` brings.
#[track_caller]
fn cached(name: &'static str) -> PathBuf {
    catalogue::fetch(images(), name).unwrap()
}

/// An initramfs that is none of ours: busybox as it is, and a first program that says a word and switches off.
fn initramfs(path: &Path) {
    const FIRST: &[u8] = b"#!/bin/busybox sh\nbusybox mount -t proc proc /proc\n\
        echo \"an initramfs of my own: $(busybox cat /proc/cmdline)\"\nbusybox poweroff -f\n";
    let busybox = std::fs::read(cached(BUSYBOX)).unwrap();
    let mut archive = Vec::new();
    let files: [(&str, u32, &[u8]); 5] = [
        ("bin", 0o040_755, b""),
        ("dev", 0o040_755, b""),
        ("proc", 0o040_755, b""),
        ("bin/busybox", 0o100_755, &busybox),
        ("init", 0o100_755, FIRST),
    ];
    for (name, mode, content) in files {
        let file = newc::Builder::new(name).mode(mode);
        let mut file = file.write(&mut archive, content.len() as u32);
        file.write_all(content).unwrap();
        file.finish().unwrap();
    }
    // The kernel opens it for the first program.
    let console = newc::Builder::new("dev/console").mode(0o020_600).rdev_major(5).rdev_minor(1);
    console.write(&mut archive, 0).finish().unwrap();
    std::fs::write(path, newc::trailer(archive).unwrap()).unwrap();
}

#[test]
fn a_kernel_and_an_initramfs_of_ones_own_are_booted_by_their_paths() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, initrd) = (folder.path().join("Image"), folder.path().join("initramfs.cpio"));
    std::fs::copy(cached(KERNELS[1]), &kernel).unwrap();
    initramfs(&initrd);
    Scenario::linux()
        .with("--kernel", kernel.display())
        .with("--initrd", initrd.display())
        .with("--append", "console=ttyAMA0 panic=-1 quiet mine=1")
        .timeout(PATIENCE)
        .passes()
        .shows("an initramfs of my own: console=ttyAMA0 panic=-1 quiet mine=1")
        .checks("it powered off", |report| report.outcome == Outcome::PoweredOff);
}

/// The comparison with QEMU alone. The wall times are for nobody to judge here; the instructions are counted, and the same each time.
#[test]
fn the_comparison_with_qemu_alone_counts_the_same_twice() {
    images();
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("numbers.json");
    let mut command = Command::new(hypctl());
    command.args(["bench", "linux", "--quick", "--pairs", "1", "--quiet", "--json"]).arg(&json);
    let ended = {
        let _host = host::shared();
        bounded::run(&mut command, b"", Duration::from_secs(3 * PATIENCE)).unwrap()
    };
    let code = ended.status.and_then(|status| status.code());
    assert_eq!(code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let numbers: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(numbers["identical"], true, "{numbers}");
    assert_eq!(numbers["pairs"].as_array().unwrap().len(), 1, "{numbers}");
    let ratio = numbers["instruction_ratio"].as_f64().unwrap();
    assert!(1.0 < ratio && ratio <= INSTRUCTIONS, "{ratio}\n{}", ended.stdout);
    println!("{}", ended.stdout);
}

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

#[test]
fn run_linux_refuses_too_little_memory_likewise() {
    let of = |guest: &str| Scenario::of(guest).before_the_build();
    for guest in ["linux", "linux-6.1"] {
        refused(
            of(guest).with("--guest-mem", "40M"),
            &["--guest-mem 40 MiB is too little for Linux"],
        )
        .never_started();
    }
    // What one gets without a wish may be too little, too, for an initramfs of one's own.
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    std::fs::File::create(&initrd).unwrap().set_len(300 << 20).unwrap();
    let scenario = of("linux").with("--initrd", initrd.display());
    refused(scenario, &["--guest-mem 512 MiB is too little", "unpacked at least 300 MiB"])
        .never_started();
}

#[test]
fn churn_linux_refuses_too_little_memory_likewise() {
    let mut command = Command::new(hypctl());
    command.args(["churn", "linux", "--mem", "40M"]);
    let ended = bounded::run(&mut command, b"", Duration::from_secs(PATIENCE)).unwrap();
    assert_eq!(ended.status.and_then(|status| status.code()), Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--mem 40 MiB is too little for Linux"), "{}", ended.stderr);
}
