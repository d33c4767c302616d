//! Tables that the scratch page takes outside of RAM: so many, and no more, whoever reaches for it.

use guest_rt::access::{Access, load};
use guest_rt::ranges::all;
use guest_rt::{Args, GIB, MIB2, Machine, PAGE, check, check_eq, fail, say};
use hyp_abi::call::{RECOVER, RECOVER_NONE, RECOVER_SCRATCH, Stat};
use hyp_abi::probe::{PROBE_NOT_MAPPED, PROBE_READ};

use super::el2::probe;
use super::{PATTERN, recovers, stat};

/// As many as 4 GiB need, and 64.
const MOST: u64 = 2048 + 64;
/// Holes by default, of which each block takes a table: more than there may be.
const FAR: usize = 4 * GIB;
const BLOCKS: usize = 2200;
/// A window that EL2 reaches, too, once it is declared.
const NEAR: usize = 2 * GIB;
const NEAR_BLOCKS: usize = 256;

/// The tables that were there at first.
struct Before(u64);

impl Before {
    fn now() -> Self {
        Self(stat(Stat::Tables) - stat(Stat::TablesFreed))
    }

    /// Those that scratch has by now.
    fn more(&self) -> u64 {
        Self::now().0 - self.0
    }
}

/// Loads from each block: as long as there may be another table they are recovered, then they are aborts. Returns how many were.
fn fill(before: &Before) -> usize {
    let mut recovered = 0;
    for block in 0..BLOCKS {
        let (more, found) = (before.more(), load(FAR + block * MIB2));
        match found {
            Ok(PATTERN) if more < MOST => recovered += 1,
            Err(_) if more >= MOST => {}
            other => fail!("block {block}, {more} tables: {other:x?}"),
        }
    }
    check!((MOST..=MOST + 1).contains(&before.more()), "{} tables", before.more());
    Access::Load.expect(FAR + BLOCKS * MIB2, false);
    // Where a table is, no other is needed.
    recovers("a load beside another", 1, || load(FAR + PAGE).ok());
    recovered
}

/// Makes them holes again; returns how many scratch pages that took away.
fn clear() -> u64 {
    let spans = (0..BLOCKS * MIB2).step_by(GIB);
    let bytes = |at: usize| GIB.min(BLOCKS * MIB2 - at);
    spans.map(|at| all(RECOVER, FAR + at, bytes(at), RECOVER_NONE)).sum()
}

/// Fills up what there may be, several times over, by this guest's accesses and by EL2's.
pub(crate) fn bounded(_: &Machine, _: Args) {
    let before = Before::now();
    let first = fill(&before);
    check_eq!(clear(), first as u64 + 1, "scratch pages that go");
    check!(before.more() <= 8, "{} tables of no page", before.more());
    check_eq!(fill(&before), first, "blocks of the second time");
    clear();

    check_eq!(all(RECOVER, NEAR, NEAR_BLOCKS * MIB2, RECOVER_SCRATCH), 0, "scratch pages");
    let less = before.more();
    for block in 0..NEAR_BLOCKS {
        let found = probe(NEAR + block * MIB2, PROBE_READ, 0);
        check_eq!(found, Ok(PATTERN), "what EL2 finds in block {block}");
    }
    let taken = (before.more() - less) as usize;
    check!((NEAR_BLOCKS..=NEAR_BLOCKS + 1).contains(&taken), "EL2's faults took {taken} tables");
    check_eq!(fill(&before) + taken, first, "blocks beside EL2's");
    let next = NEAR + NEAR_BLOCKS * MIB2;
    check_eq!(all(RECOVER, next, MIB2, RECOVER_SCRATCH), 0, "scratch pages");
    check_eq!(probe(next, PROBE_READ, 0), Err(PROBE_NOT_MAPPED), "one more, for EL2");
    Access::Load.expect(next, false);

    let end = NEAR_BLOCKS * MIB2 + MIB2;
    check_eq!(all(RECOVER, NEAR, end, RECOVER_NONE), NEAR_BLOCKS as u64, "EL2's that go");
    clear();
    let spare = taken - NEAR_BLOCKS;
    check_eq!(fill(&before) + spare, first, "blocks of the last time");
    clear();
    say!("wild: {first} of {BLOCKS} blocks had a table");
}
