//! Tests as specifications; see the module.

use alloc::string::ToString;

use proptest::prelude::*;

use super::*;
use crate::churn::{Effect, Kind};

fn sample() -> Report {
    let mut report = Report::new(Outcome::Verdict(0));
    report.vcpus = 4;
    report.guest_mem = 256 << 20;
    report.cpu_features = "40-bit IPA, HAFDBS".into();
    report.stats.faults = 4242;
    report.stats.installed = 4096;
    report.stats.lost_races = 146;
    report.stats.tlbi.insert("VMALLS12E1IS".into(), 1);
    report.stats.tlbi.insert("IPAS2E1IS".into(), 17);
    report.lives = 2;
    report.began = 7;
    report.taken_down(Takedown { frames: 4200, tables: 12, ..Takedown::default() });
    report.measure = Some(Measure { samples: 64, min: 200, median: 212, max: 480 });
    report.spent.insert(Cause::Interrupt, Spent { count: 2, instructions: 2001 });
    report.spent.insert(Cause::Populate, Spent { count: 1, instructions: 1 });
    let work = Work { calls: 8, blocks: 512, instructions: 4711, tlbis: 16, flushes: 9 };
    let none = Work::default();
    report.resizing =
        Some(Resizing { split: work, collapse: Work { calls: 1, ..work }, copy: none });
    report
}

fn nonce() -> Nonce {
    Nonce::new("0123456789abcdef").unwrap()
}

#[test]
fn the_summary_has_one_fact_a_line_in_columns() {
    let expected = "\
outcome              the guest's verdict is pass
guest                4 vCPUs, 256 MiB of RAM
stage-2 features     40-bit IPA, HAFDBS
starts               2
faults taken         4242
pages installed      4096
page races lost      146
tables allocated     0
table races lost     0
faults retried       0
spurious faults      0
device accesses      0
hypercalls           0
register traps       0
TLBI IPAS2E1IS       17
TLBI VMALLS12E1IS    1
DSBs                 0
frames back at end   4200
tables back in all   12
populate fault       212 instructions (median of 64, 200 to 480)
EL2: populate faults 1 instruction in 1
EL2: interrupts      2001 instructions in 2
splitting            4711 instructions (512 blocks, 8 calls, 16 TLBIs, flushed 9 times)
collapsing           4711 instructions (512 blocks, 1 call, 16 TLBIs, flushed 9 times)";
    assert_eq!(sample().to_string(), expected);
}

#[test]
fn causes_are_numbered_in_their_order_and_have_names_of_their_own() {
    for (number, cause) in Cause::ALL.into_iter().enumerate() {
        assert_eq!(cause as usize, number);
        let others = Cause::ALL.into_iter().filter(|other| *other != cause);
        assert!(others.into_iter().all(|other| other.name() != cause.name()));
    }
}

#[test]
fn scans_are_told_if_there_were_any() {
    let mut report = sample();
    report.stats.scan = ScanStats { passes: 3, made: 2, ..ScanStats::default() };
    assert_eq!(report.to_string(), sample().to_string(), "nothing was looked at");
    report.stats.scan =
        ScanStats { passes: 3, idle: 4, looked: 60, waits: 5, rests: 8, made: 2, failed: 1 };
    let rows = "
scans of all RAM     3
idle CPUs' parts     4
spans looked at      60
spans to wait        5
spans to rest        8
blocks by scans      2
spans that stay      1
TLBI IPAS2E1IS";
    assert!(report.to_string().contains(rows), "{report}");
}

#[test]
fn what_was_churned_is_told_by_kind() {
    let mut report = sample();
    let effect = |steps, changed, refused| Effect { steps, changed, refused };
    report.stats.churn.insert(Kind::WriteProtect, effect(12, 6144, 0));
    report.stats.churn.insert(Kind::Compare, effect(1, 1, 2));
    let rows = "
churn: write-protect 6144 mappings in 12 steps
churn: compare       1 page in 1 step, 2 refused
TLBI IPAS2E1IS";
    assert!(report.to_string().contains(rows), "{report}");
}

/// Blocks may have been made of pages though none was populated.
#[test]
fn blocks_are_told_wherever_they_come_from() {
    let told = |change: fn(&mut Stats)| {
        let mut report = sample();
        change(&mut report.stats);
        report.to_string().contains("\nblocks made          ")
    };
    assert!(!told(|_| ()));
    assert!(told(|stats| stats.blocks = 1) && told(|stats| stats.split = 1));
    assert!(told(|stats| stats.collapsed = 1));
}

#[test]
fn a_vm_that_leaves_something_behind_is_the_hypervisors_fault() {
    let down = |leaked_frames, leaked_heap, wrong: Option<&str>| {
        let wrong = wrong.map(Into::into);
        let mut report = Report::new(Outcome::Verdict(0));
        report.taken_down(Takedown { leaked_frames, leaked_heap, wrong, ..Takedown::default() });
        (report.exit_code, report.reason.unwrap_or_default())
    };
    assert_eq!(down(0, 0, None), (0, "".into()));
    let text = "after the VM's end 3 frames and 0 bytes of the heap are missing";
    assert_eq!(down(3, 0, None), (5, text.into()));
    assert_eq!(down(0, 208, None).0, 5);
    let text = "the VM could not be taken down: a claim is left";
    assert_eq!(down(0, 0, Some("a claim is left")), (5, text.into()));
}

#[test]
fn a_refusal_says_why_and_shows_no_empty_table() {
    let mut report = Report::new(Outcome::Refused);
    report.reason = Some("no PL011".into());
    assert_eq!(
        report.to_string(),
        "outcome              nothing was started\nreason               no PL011"
    );
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let codes = [
        (Outcome::PoweredOff, 0),
        (Outcome::Reset, 0),
        (Outcome::Verdict(0), 0),
        (Outcome::Verdict(7), 1),
        (Outcome::Verdict(u64::MAX), 1),
        (Outcome::Stopped, 3),
        (Outcome::Refused, 4),
        (Outcome::Crashed, 5),
    ];
    for (outcome, code) in codes {
        assert_eq!(Report::new(outcome).exit_code, code, "{outcome:?}");
    }
}

#[test]
fn a_line_is_found_after_output_that_the_guest_left_unfinished() {
    let line = alloc::format!("=> {}\r\n", sample().to_line(&nonce()).unwrap());
    assert_eq!(Report::from_line(&line, &nonce()).unwrap().unwrap(), sample());
}

#[test]
fn a_forged_line_is_no_report() {
    let other = Nonce::new("fedcba9876543210").unwrap();
    let line = sample().to_line(&other).unwrap();
    assert!(Report::from_line(&line, &nonce()).is_none());
    assert!(Report::from_line("hyp: outcome", &nonce()).is_none());
    // A longer nonce that begins with ours is another one.
    let longer = Nonce::new("0123456789abcdef0123").unwrap();
    assert!(Report::from_line(&sample().to_line(&longer).unwrap(), &nonce()).is_none());
}

#[test]
fn a_line_cut_short_is_an_error_and_not_a_report() {
    let line = sample().to_line(&nonce()).unwrap();
    let cut = &line[..line.len() - 2];
    assert!(matches!(Report::from_line(cut, &nonce()), Some(Err(ReportError::Json(_)))));
}

#[test]
fn another_version_is_called_that() {
    let text = sample().to_json().unwrap().replace("\"version\":1", "\"version\":9");
    assert!(matches!(Report::from_json(&text), Err(ReportError::Version(9))));
}

#[test]
fn text_from_a_guest_cannot_break_the_line() {
    let mut report = sample();
    report.reason = Some("a\nb\x1e0123456789abcdef{}".into());
    let line = report.to_line(&nonce()).unwrap();
    assert_eq!(line.matches(MARK).count(), 1);
    assert!(!line.contains('\n'));
    assert_eq!(Report::from_line(&line, &nonce()).unwrap().unwrap(), report);
}

proptest! {
    #[test]
    fn a_report_comes_back_from_its_line(
        code: u64, vcpus in 1..=8_u32, mem: u64, faults: u64, dsb: u64, reason in ".{0,40}",
        kinds in proptest::collection::btree_map("[a-z0-9]{1,12}", any::<u64>(), 0..6),
        (vm, vcpu, pc, esr, ipa) in any::<(u32, u32, u64, u64, Option<u64>)>(),
    ) {
        let mut report = Report::new(Outcome::Verdict(code));
        report.vcpus = vcpus;
        report.guest_mem = mem;
        report.reason = Some(reason);
        report.stats.faults = faults;
        report.stats.dsb = dsb;
        report.stats.tlbi = kinds;
        let mut diagnosis = Diagnosis::new(vm, vcpu, pc, esr).with_region("none");
        diagnosis.ipa = ipa;
        report.diagnosis = Some(diagnosis);
        let line = report.to_line(&nonce()).unwrap();
        prop_assert_eq!(Report::from_line(&line, &nonce()).unwrap().unwrap(), report);
    }
}
