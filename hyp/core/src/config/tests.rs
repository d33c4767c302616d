//! The command line: what is understood, what is refused, and with what sentence.

use std::format;
use std::string::ToString;

use proptest::prelude::*;

use super::*;
use crate::range::IpaRange;
use crate::recovery::Recovery;

const MIB: u64 = 1 << 20;

/// 4 CPUs, 480 MiB free, 16 MiB of that for the hypervisor.
const MACHINE: Bounds =
    Bounds { cpus: 4, free: 480 * MIB, overhead: 16 * MIB, can_measure: false, can_trace: false };

fn resolve(line: &str, machine: &Bounds) -> Result<Config, ConfigError> {
    Request::parse(line)?.resolve(machine)
}

fn refusal(line: &str) -> std::string::String {
    resolve(line, &MACHINE).unwrap_err().to_string()
}

#[test]
fn an_empty_line_means_every_cpu_and_half_of_memory() {
    let config = resolve("", &MACHINE).unwrap();
    let (vcpus, mem, restarts) = (4, 240 * MIB, None);
    let all = Config {
        vcpus,
        mem,
        restarts,
        report: None,
        blocks: false,
        scan: false,
        churn: None,
        manage: false,
        recover: Asked::default(),
        bbm: None,
        mask: Mask::empty(),
        measure: false,
        trace: None,
    };
    assert_eq!(config, all);
    let large = Bounds { cpus: 64, free: 64 << 30, ..MACHINE };
    let config = resolve("  ", &large).unwrap();
    assert_eq!((config.vcpus, config.mem), (8, 1 << 30));
}

#[test]
fn every_word_is_understood() {
    let line = " mem=64M\tvcpus=2  report=0123456789abcdef blocks scan churn=60,seed=9 manage bbm=1 mask=lse,ttl measure restarts=3\n";
    let config = resolve(line, &Bounds { can_measure: true, ..MACHINE }).unwrap();
    assert_eq!(
        (config.vcpus, config.mem, config.blocks, config.measure),
        (2, 64 * MIB, true, true)
    );
    assert_eq!((config.restarts, config.scan, config.bbm), (Some(3), true, Some(1)));
    assert_eq!(config.churn, Some(Wanted { seconds: 60, seed: 9, session: None }));
    assert!(config.manage);
    assert_eq!(config.mask, Mask::LSE | Mask::TTL);
    assert_eq!(config.report.unwrap().as_str(), "0123456789abcdef");
}

#[test]
fn a_trace_has_an_order_and_a_mark() {
    let machine = Bounds { can_trace: true, ..MACHINE };
    let config = |line: &str| resolve(line, &machine).map_err(|error| error.to_string());
    let trace = |line: &str| config(line).unwrap().trace;
    assert_eq!(trace("report=0123456789abcdef"), None);
    for (word, order) in [("total", Order::Total), ("per-pe", Order::PerCpu)] {
        let line = std::format!("report=0123456789abcdef trace={word}");
        assert_eq!(trace(&line), Some(Trace { order, most: None }));
        assert_eq!(trace(&(line + " trace-max=10")), Some(Trace { order, most: Some(10) }));
    }
    assert_eq!(
        config("trace=total").unwrap_err(),
        "\"trace\" needs \"report=NONCE\": it marks the trace too"
    );
    assert_eq!(config("trace-max=10").unwrap_err(), "\"trace-max\" without \"trace\"");
    assert_eq!(config("trace=all").unwrap_err(), "trace=\"all\" is not total or per-pe");
    assert_eq!(
        refusal("trace=total report=0123456789abcdef"),
        "\"trace\" needs a hypervisor built with the feature \"trace\""
    );
}

#[test]
fn recovery_has_a_default_windows_and_bounds() {
    let config = |line: &str| resolve(line, &MACHINE).unwrap().recover;
    assert_eq!(config("recover=scratch").default, Some(Recovery::Scratch));
    let line =
        "recover=inject,scratch@0x50000000+16M,stop@8192+0x1000 recover-limit=5 recover-rate=0";
    let window = |start, len, policy| (IpaRange::from_len(start, len).unwrap(), policy);
    let windows =
        [window(0x5000_0000, 16 << 20, Recovery::Scratch), window(8192, 4096, Recovery::Stop)];
    let default = Some(Recovery::Inject);
    assert_eq!(
        config(line),
        Asked { default, windows: windows.into(), limit: Some(5), rate: Some(0) }
    );
    for value in [
        "",
        "none",
        "Scratch",
        "scratch,",
        "scratch,stop",
        "scratch@0x1000",
        "scratch@+4K",
        "scratch@0x+4K",
        "scratch@4096+",
        "scratch@-1+4K",
        "scratch@0xffffffffffffffff+2",
        "scratch@4096+4k",
        "@4096+4K",
        "scratch@1@2+4K",
    ] {
        let refused = refusal(&std::format!("recover={value}"));
        assert!(
            refused.starts_with(&std::format!(
                "recover=\"{value}\" is not POLICY or POLICY@START+SIZE"
            )),
            "{refused}"
        );
    }
    assert_eq!(refusal("recover-limit=x"), "recover-limit=\"x\" is not a number of violations");
    assert_eq!(
        refusal("recover-rate=4294967296"),
        "recover-rate=\"4294967296\" is not a number of violations from 0 to 4294967295"
    );
    assert_eq!(refusal("recover=stop recover=stop"), "recover is given twice");
}

#[test]
fn sizes_have_a_unit() {
    assert_eq!(parse_size("65536K"), Some(64 * MIB));
    assert_eq!(parse_size("1G"), Some(1024 * MIB));
    for bad in
        ["", "M", "64", "64m", "64MB", "0x40M", "+1M", "-1M", "1.5G", "18446744073709551615G"]
    {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}

#[test]
fn a_refusal_has_the_numbers_in_it() {
    assert_eq!(refusal("mem=4M"), "mem=4 MiB is too little: a guest needs at least 8 MiB");
    assert_eq!(refusal("mem=8193K"), "mem=8389632 bytes is not a multiple of 4 KiB");
    assert_eq!(
        refusal("mem=465M"),
        "mem=465 MiB is too much: 480 MiB are free, and 16 MiB of that are the hypervisor's own"
    );
    assert_eq!(
        refusal("measure"),
        "\"measure\" needs a hypervisor built with the feature \"measure\""
    );
    assert_eq!(refusal("vcpus=1 vcpus=1"), "vcpus is given twice");
    assert_eq!(refusal("blocks blocks"), "blocks is given twice");
    assert_eq!(refusal("scan scan"), "scan is given twice");
    assert_eq!(refusal("churn=1 churn=2"), "churn is given twice");
    let wanted =
        "a number of seconds from 1 to 86400, and perhaps \",seed=N\" and \",session=SECONDS\"";
    assert_eq!(refusal("churn=0"), format!("churn=\"0\" is not {wanted}"));
    assert_eq!(refusal("manage manage"), "manage is given twice");
    assert_eq!(refusal("bbm=0 bbm=0"), "bbm is given twice");
    assert_eq!(refusal("bbm=3"), "bbm=\"3\" is not 0, 1 or 2");
    assert_eq!(refusal("mask=lse mask=ttl"), "mask is given twice");
    assert_eq!(refusal("measure measure"), "measure is given twice");
}

#[test]
fn unknown_words_are_refused_and_shown_harmlessly() {
    assert_eq!(
        refusal("vcpu=2"),
        "unknown word \"vcpu=2\" on the command line; known: vcpus=N mem=SIZE restarts=N report=NONCE blocks scan churn=SECONDS[,seed=N][,session=N] manage recover=POLICY[@START+SIZE],... recover-limit=N recover-rate=N bbm=LEVEL mask=NAME,... measure trace=ORDER trace-max=N"
    );
    assert!(matches!(Request::parse("measure=1"), Err(ConfigError::UnknownWord(_))));
    assert!(matches!(Request::parse("vcpus"), Err(ConfigError::UnknownWord(_))));
    let escape = refusal("\u{1b}[2J");
    assert!(escape.contains("\\u{1b}[2J"), "{escape}");
    let long = "x".repeat(2000);
    assert!(refusal(&long).len() < 300);
    assert_eq!(Request::parse(&"x".repeat(3000)), Err(ConfigError::TooLong(3000)));
}

#[test]
fn bad_values_are_refused() {
    for line in [
        "vcpus=",
        "vcpus=0",
        "vcpus=9",
        "vcpus=two",
        "vcpus=1 mem=",
        "mem=64",
        "bbm=",
        "bbm=-1",
        "mask=",
        "mask=granule-4k",
        "report=",
        "report=xyz",
        "trace-max=-1",
        "trace-max=99999999999999999999",
    ] {
        assert!(matches!(Request::parse(line), Err(ConfigError::Value { .. })), "{line}");
    }
    for digits in ["0123456789abcde", "0123456789ABCDEF"] {
        assert_eq!(Nonce::new(digits), None, "{digits}");
    }
    assert_eq!(Nonce::new(&"a".repeat(65)), None);
    assert!(Nonce::new(&"a".repeat(64)).is_some());
}

#[test]
fn a_small_machine_gives_the_least_rather_than_half() {
    let small = Bounds { free: 12 * MIB, overhead: MIB, ..MACHINE };
    assert_eq!(resolve("", &small).unwrap().mem, MIN_MEM);
}

#[test]
fn a_machine_without_room_says_so() {
    let small = Bounds { free: 20 * MIB, ..MACHINE };
    assert_eq!(
        resolve("", &small).unwrap_err().to_string(),
        "the machine is too small: 20 MiB are free, 16 MiB of that are the hypervisor's own, a guest needs 8 MiB"
    );
    assert!(resolve("mem=8M", &small).is_err());
    let none = Bounds { cpus: 0, ..MACHINE };
    assert!(matches!(resolve("", &none), Err(ConfigError::NoCpu)));
}

#[test]
fn a_refused_line_still_gives_its_nonce() {
    let line = "vcpus=99 report=zz report=0123456789abcdef";
    assert!(Request::parse(line).is_err());
    assert_eq!(Nonce::find(line), Nonce::new("0123456789abcdef"));
    assert_eq!(Nonce::find("vcpus=2"), None);
}

#[test]
fn a_nonce_is_not_shown_by_debug() {
    let nonce = Nonce::new("0123456789abcdef").unwrap();
    assert!(!std::format!("{nonce:?}").contains("0123"));
}

proptest! {
    #[test]
    fn whatever_is_granted_fits(
        line in "( |vcpus=[0-9]{1,3}|mem=[0-9]{1,7}[KMG]|report=[0-9a-f]{10,20}|measure|trace=total|trace-max=9|[a-z=]{1,9}){0,4}",
        cpus in 0..20_usize, free in 0..1_u64 << 36, overhead in 0..1_u64 << 30, can_measure: bool, can_trace: bool,
    ) {
        let machine = Bounds { cpus, free, overhead, can_measure, can_trace };
        if let Ok(config) = resolve(&line, &machine) {
            prop_assert!(cpus > 0 && (1..=MAX_VCPUS).contains(&config.vcpus));
            prop_assert!(config.mem >= MIN_MEM && config.mem + overhead <= free);
            prop_assert_eq!(config.mem % PAGE_SIZE, 0);
            prop_assert!(can_measure || !config.measure);
            prop_assert!(can_trace && config.report.is_some() || config.trace.is_none());
        }
    }

    #[test]
    fn any_line_gets_an_answer(line in any::<std::string::String>()) {
        let _ = resolve(&line, &MACHINE).map_err(|error| error.to_string());
    }
}
