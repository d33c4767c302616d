//! Guests that do something wrong: each end is the one that was promised.

use e2e::{Run, Scenario, on_every_cpu};
use hyp_abi::map::{GICD_BASE, GICR_BASE};
use hyp_core::report::Outcome;

/// Guest memory of every run here, so that addresses are known.
const MEM: &str = "64M";
/// First IPA behind it.
const RAM_END: u64 = 0x4400_0000;
/// Where `wild` reaches by itself.
const NOWHERE: u64 = RAM_END + (1 << 20) + 8;

fn case(words: &str) -> Scenario {
    Scenario::of("wild").append(&format!("case={words}")).with("--guest-mem", MEM).vcpus(2)
}

/// Expects a stop, and the whole diagnosis on the console and in the report.
#[track_caller]
fn stops(run: Run, ipa: u64, words: &[&str]) -> Run {
    let run = run.exits(3).shows_in_order(&["VM 0", "vCPU", "PC", "ESR", "IPA", "region", "hint"]);
    let report = run.report();
    assert_eq!(report.outcome, Outcome::Stopped, "{run}");
    let Some(diagnosis) = report.diagnosis else { panic!("no diagnosis\n{run}") };
    assert_eq!(diagnosis.vm, 0, "{run}");
    assert_eq!(diagnosis.vcpu, 0, "{run}");
    assert_eq!(diagnosis.ipa, Some(ipa), "IPA (left) is not {ipa:#x}\n{run}");
    assert!(diagnosis.region.is_some(), "no region\n{run}");
    assert!(!diagnosis.hint.is_empty(), "no hint\n{run}");
    for word in words {
        assert!(diagnosis.cause.contains(word), "{:?} has no {word:?}\n{run}", diagnosis.cause);
    }
    // The instruction lies in the guest's image, unless the fetch itself is what went wrong.
    let fetch = diagnosis.cause.contains("instruction abort");
    let image = 0x4020_0000..0x4060_0000;
    assert!(fetch || image.contains(&diagnosis.pc), "PC {:#x}\n{run}", diagnosis.pc);
    run
}

on_every_cpu!(a_load_from_nowhere_is_diagnosed, |cpu| {
    let run = case("read").cpu(cpu).run();
    stops(run, NOWHERE, &["data abort from the guest", "read of 8 bytes", "translation fault"])
        .shows("RAM");
});

on_every_cpu!(a_store_to_nowhere_is_diagnosed, |cpu| {
    let run = case("write").cpu(cpu).run();
    stops(run, NOWHERE, &["data abort from the guest", "write of 8 bytes", "translation fault"]);
});

on_every_cpu!(a_fetch_from_nowhere_is_diagnosed, |cpu| {
    let run = case("exec").cpu(cpu).run();
    stops(run, NOWHERE, &["instruction abort from the guest", "translation fault"]);
});

on_every_cpu!(a_stage_1_table_in_nowhere_is_diagnosed, |cpu| {
    // The descriptor's own address: the first of the table.
    let run = case("s1ptw").cpu(cpu).run();
    let run = run.exits(3);
    let ipa = run.report().diagnosis.and_then(|diagnosis| diagnosis.ipa);
    assert_eq!(ipa.map(|ipa| ipa & !0xfff), Some(NOWHERE & !0xfff), "{run}");
    run.shows("stage-1 table walk");
});

#[test]
fn an_access_just_behind_ram_is_diagnosed() {
    stops(case("write at=0x44000000").run(), RAM_END, &["write of 8 bytes"]);
}

#[test]
fn the_last_bytes_of_ram_are_ram() {
    case("read at=0x43fffff8").run().exits(1).shows("gave 0x0");
}

#[test]
fn an_address_beyond_the_promised_size_is_the_guests_own_fault() {
    case("read at=0xf000000000").run().exits(1).shows("address size fault");
}

#[test]
fn the_last_address_of_32_bits_is_diagnosed() {
    stops(case("read at=0xfffffff8").run(), 0xffff_fff8, &["read of 8 bytes"]);
}

#[test]
fn a_missing_device_is_diagnosed() {
    let run = case("no-device").run();
    stops(run, 0x0a00_0000, &["write of 4 bytes"]);
}

#[test]
fn a_device_access_without_syndrome_is_diagnosed() {
    stops(case("mmio-pair").run(), 0x0900_0010, &["data abort from the guest"]);
    stops(case("mmio-simd").run(), 0, &["data abort from the guest"]);
}

on_every_cpu!(a_pair_from_the_interrupt_controller_is_diagnosed, |cpu| {
    for (at, name) in [(GICD_BASE, "(GICD)"), (GICR_BASE, "(GICR)")] {
        let run = case(&format!("mmio-pair at={at:#x}")).cpu(cpu).run();
        stops(run, at, &["data abort from the guest"]).shows(name).shows("not decoded (a pair");
    }
});

#[test]
fn a_fetch_from_flash_is_diagnosed() {
    stops(case("flash-exec").run(), 0, &["instruction abort from the guest"]);
}

#[test]
fn devices_answer_in_every_size() {
    case("uart").passes();
    case("flash-read").passes();
    case("flash-write").passes();
    case("unaligned-device").passes();
}

#[test]
fn the_keyboard_reaches_the_guest() {
    case("echo")
        .script(
            "expect echo\nsend-raw a\nexpect key 'a'\nsend-raw \\x01\nexpect 0x01\nsend-raw q\n",
        )
        .passes();
}

#[test]
fn keys_typed_at_once_are_not_lost() {
    let keys = "0123456789".repeat(20);
    let run = case("echo").script(&format!("expect echo\nsend-raw {keys}q\n")).passes();
    assert_eq!(run.console().matches("wild: key ").count(), keys.len(), "{run}");
}

on_every_cpu!(calls_are_answered, |cpu| {
    for words in ["smc-unknown", "hvc-unknown", "stat-bad", "psci"] {
        case(words).cpu(cpu).passes();
    }
});

on_every_cpu!(id_registers_are_all_readable, |cpu| {
    case("idregs").cpu(cpu).passes();
});

on_every_cpu!(waiting_instructions_wake, |cpu| {
    case("wfx").cpu(cpu).passes();
});

#[test]
fn semihosting_is_not_reachable() {
    case("hlt").passes();
}

#[test]
fn power_off_ends_the_run() {
    case("off").run().exits(0).checks("powered off", |it| it.outcome == Outcome::PoweredOff);
}

#[test]
fn a_reset_ends_the_run_where_no_reboot_is_asked_for() {
    let run = case("reset").flag("--no-reboot").run();
    run.exits(0).checks("reset", |report| report.outcome == Outcome::Reset);
}

#[test]
fn a_reset_starts_the_machine_again() {
    let run = case("reset").timeout(8).run().exits(124);
    let boots = run.console().matches("wild: case=reset").count();
    assert!(boots >= 2, "{boots} boots\n{run}");
}

// Virtual time begins with each life of the VM: at the value of the physical counter that the report names.
on_every_cpu!(the_virtual_counter_begins_anew_with_each_life, |cpu| {
    let run = case("counters").with("--restarts", 1).cpu(cpu).run().exits(0);
    let console = run.console();
    let ahead = console.lines().filter_map(|line| line.strip_prefix("wild: ahead by "));
    let ahead: Vec<_> = ahead
        .map(|bounds| {
            let (least, most) = bounds.trim_end().split_once(" to ").expect("two bounds");
            least.parse::<u64>().unwrap()..=most.parse::<u64>().unwrap()
        })
        .collect();
    let [first, second] = &ahead[..] else { panic!("two lives: {ahead:?}\n{run}") };
    assert!(*first.start() > 0 && first.end() < second.start(), "{ahead:?}\n{run}");
    let began = run.report().began;
    assert!(second.contains(&began), "{second:?} has not {began}\n{run}");
});

#[test]
fn a_machine_is_reset_as_often_as_allowed() {
    let run = case("reset").with("--restarts", 5).run().exits(0);
    let run = run.shows("the guest asked for a reset: restart 5");
    run.shows_no("restart 6").checks("six starts", |report| report.lives == 6);
}

#[test]
fn a_verdict_of_fail_is_an_exit_code() {
    for code in ["1", "7", "0xffffffffffffffff"] {
        case(&format!("verdict-fail code={code}")).run().exits(1);
    }
}

#[test]
fn a_vm_whose_vcpus_are_all_off_ends() {
    let run = case("cpu-off").run();
    assert_ne!(run.ended_by(), "timeout", "the VM has no vCPU left, and still runs\n{run}");
}

#[test]
fn other_vcpus_are_stopped_wherever_they_are() {
    case("spin-others").vcpus(4).run().exits(0);
    case("sleep-others").vcpus(4).run().exits(0);
    case("fail-other").vcpus(4).run().exits(1);
}

#[test]
fn a_guest_that_crashes_or_panics_has_failed() {
    case("crash").run().exits(1);
    case("panic").run().exits(1).shows("panicked: index out of bounds");
}

#[test]
fn unknown_system_registers_are_no_crash_of_the_hypervisor() {
    for access in ["reg=S3_0_C15_C0_0", "reg=S3_4_C1_C1_0", "reg=S3_0_C15_C2_0 value=1"] {
        let run = case(&format!("sysreg {access}")).run();
        let code = run.report().exit_code;
        assert!(matches!(code, 0 | 3), "{access}: {code}\n{run}");
    }
}

on_every_cpu!(a_started_vcpu_finds_zeroes_in_its_registers, |cpu| {
    case("restart").cpu(cpu).passes().shows("each start found zeroes");
});

on_every_cpu!(event_counters_are_neither_promised_nor_there, |cpu| {
    // The case itself looks at PMUVer and its kin in the ID registers.
    case("idregs").cpu(cpu).passes();
    // PMCR_EL0.
    let run = case("sysreg reg=S3_3_C9_C12_0").cpu(cpu).run();
    run.shows("wild: S3_3_C9_C12_0: undefined instruction");
});

#[test]
fn a_guest_that_hangs_is_ended_by_the_timeout() {
    let run = case("sleep").timeout(3).run().exits(124).shows("what should come of it");
    assert_eq!(run.ended_by(), "timeout", "{run}");
    run.says("timeout after 3");
}

#[test]
fn a_hung_guest_is_a_failed_test_with_its_console() {
    let hangs = || case("sleep").timeout(3).passes();
    let panic = std::panic::catch_unwind(hangs).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    for part in ["case=sleep: waits for an interrupt", "timeout after", "hypctl run wild"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}
