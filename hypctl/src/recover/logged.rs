//! What the log has to say of the scenario `hole-logged`, record by record.

use hyp_core::report::Report;
use hyp_core::violation::{Kind, Outcome, Violation};

/// The guest's RAM ends here, and the window begins.
const HOLE: u64 = 0x4400_0000;
/// Where the guest has the first GiB of its RAM for EL0, and a table of its own: root slots of its stage 1.
const EL0_SLOT: u64 = (64 + 100) << 30;
const TABLE_SLOT: u64 = (64 + 110) << 30;
/// The guest's image, in which its instructions are.
const IMAGE: std::ops::Range<u64> = 0x4020_0000..0x4060_0000;

/// A record: kind, Exception level, virtual address, IPA, size and register, outcome, count.
type Record = (Kind, u8, u64, u64, Option<(u8, u8)>, Outcome, u64);

/// In the order of the guest's accesses.
#[rustfmt::skip]
const WANTED: [Record; 6] = [
    (Kind::Read, 1, HOLE + 0x101, HOLE + 0x101, Some((1, 5)), Outcome::Scratch, 1),
    (Kind::Write, 1, HOLE + 0x1208, HOLE + 0x1208, Some((8, 7)), Outcome::Scratch, 1),
    (Kind::Read, 1, HOLE + 0x2310, HOLE + 0x2310, None, Outcome::Scratch, 1),
    (Kind::Fetch, 1, HOLE + 0x3040, HOLE + 0x3040, None, Outcome::Injected, 3),
    (Kind::Walk, 1, TABLE_SLOT + 0x1238, HOLE + 0x4000, None, Outcome::Scratch, 1),
    (Kind::Read, 0, EL0_SLOT + 0x0400_5048, HOLE + 0x5048, Some((8, 0)), Outcome::Scratch, 1),
];

/// What is wrong with the log.
pub(super) fn check(report: &Report) -> Vec<String> {
    let list = &report.violation_log.list;
    let mut wrong = Vec::new();
    if list.len() != WANTED.len() {
        wrong.push(format!("{} records, not {}", list.len(), WANTED.len()));
    }
    for (number, (found, wanted)) in list.iter().zip(WANTED).enumerate() {
        let record = of(found);
        if record != Some(wanted) {
            wrong.push(format!("record {number} is {found:?}, not {wanted:x?}"));
        }
        // A fetch is where it goes.
        let place =
            if found.kind == Kind::Fetch { found.va == Some(found.pc) } else { is_code(found) };
        if !place || (found.vm, found.vcpu) != (0, 0) || found.time == 0 {
            wrong.push(format!("who and where of record {number}: {found:?}"));
        }
    }
    if !list.is_sorted_by_key(|it| it.time) {
        wrong.push("times go back".to_owned());
    }
    wrong
}

/// At EL0 code is in an alias of RAM.
fn is_code(found: &Violation) -> bool {
    IMAGE.contains(&(if found.el == 0 { RAM | (found.pc % (1 << 30)) } else { found.pc }))
}

/// The GiB of RAM that the image is in.
const RAM: u64 = 1 << 30;

fn of(found: &Violation) -> Option<Record> {
    let Violation { kind, el, va, ipa, size, register, outcome, count, .. } = *found;
    let decoded = match (size, register) {
        (Some(size), Some(register)) => Some((size, register)),
        (None, None) => None,
        _ => return None,
    };
    Some((kind, el, va?, ipa?, decoded, outcome, count))
}
