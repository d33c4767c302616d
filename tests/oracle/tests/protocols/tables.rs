//! A table page is given back only after every walk has left it.

use mmu_oracle::Event;
use stage2::addr::PAGE_SIZE;
use stage2::{Caps, Level, Memory, Pa};

use crate::rig::{LEVELS, Pool, Rig, TLBI_CAPS, VMIDS, Vm, drain, fault, map, range};

const VMID: u16 = VMIDS[0];
/// Aligned to 1 GiB.
const BASE: u64 = 0x40_0000_0000;

/// Unlinks the tables below the slot of `above` at `BASE`, deepest first, and gives them back: leaves and
/// links to Drain, one flush over the whole span, then Empty.
#[track_caller]
fn give_back(rig: &Rig, vm: &Vm<'_>, above: Level, leaves: &[u64], inner: &[u64], frames: &Pool) {
    let address = |bits: u64| Pa::new(bits & 0x0000_ffff_ffff_f000);
    let drained = drain(rig, vm, leaves);
    // Tables inside of the one that is unlinked, then that one.
    let links: Vec<_> = inner
        .iter()
        .map(|ipa| (rig.slot_at(vm, *ipa, above as u8 + 1), LEVELS[above as usize + 1]))
        .chain([(rig.slot_at(vm, BASE, above as u8), above)])
        .collect();
    let unlinked: Vec<_> = links
        .iter()
        // SAFETY: (1) live, and one thread changes these tables.
        .map(|(slot, level)| unsafe { slot.clear(&&rig.machine, *level) }.expect("it is live"))
        .collect();
    let span = range(BASE, above.slot_bytes());
    let flushed = vm.tlb().table(span);
    rig.relies_on_flush(VMID, span);
    let tables: Vec<Pa> = unlinked.iter().map(|link| address(link.old().bits())).collect();
    for slot in drained.into_iter().chain(unlinked) {
        // SAFETY: (1) flushed above, the whole span.
        unsafe { slot.release(&&rig.machine, &flushed) };
    }
    for table in tables {
        rig.machine.note(|pe| Event::Scribble { pe, table: table.get() });
        // SAFETY: (1) from there, and unlinked. (2) Flushed, and no guard is open. (3) All released.
        unsafe { vm.memory().free_table(table, 1) };
    }
    for frame in frames.taken() {
        rig.free_frame(*frame, frames.size());
    }
}

/// Populates below `BASE`, gives the tables back, and uses their pages for something else.
#[track_caller]
fn round(caps: Caps, above: Level, leaf: Level, leaves: &[u64], inner: &[u64]) {
    let what = (caps, above, leaf);
    let rig = Rig::new(40, caps);
    let vm = rig.vm();
    rig.enter(&vm, 0);
    rig.enter(&vm, 1);
    let root = rig.live();
    let mut first = Pool::new(1, leaf, leaves.len() as u64);
    for ipa in leaves {
        map(&rig, &vm, *ipa, leaf, &mut first);
    }
    // What stays has tables of its own.
    let mut other = Pool::new(2, Level::L3, 1);
    let kept = map(&rig, &vm, 0, Level::L3, &mut other);
    let before = rig.live();
    give_back(&rig, &vm, above, leaves, inner, &first);
    rig.assert_sound(&what);
    assert_eq!(rig.live(), before - 1 - inner.len(), "{what:?}: tables in use");
    assert_eq!(rig.live(), rig.reachable(&vm), "{what:?}: tables in use are linked");
    // The pages serve again, at other places of the tree.
    let mut second = Pool::new(3, Level::L3, 8);
    for n in [1, 2, 3, 0] {
        let (result, _) = fault(&rig, &vm, 1, BASE + (n << 30), Level::L3, &mut second);
        assert!(result.is_ok(), "{what:?}: {result:?}");
    }
    let pa = rig.translate(1, BASE).map(|found| found.pa);
    assert!(pa.is_some_and(|pa| second.taken().contains(&pa)), "{what:?}: wrong frame {pa:x?}");
    assert_eq!(rig.translate(1, 0).map(|found| found.pa), Some(kept), "{what:?}: the rest stays");
    assert!(rig.live() > root);
    rig.assert_sound(&what);
}

#[test]
fn a_table_of_pages_is_given_back_after_all_walks_left_it() {
    for caps in TLBI_CAPS {
        let leaves = [BASE, BASE + 5 * PAGE_SIZE, BASE + 511 * PAGE_SIZE];
        round(caps, Level::L2, Level::L3, &leaves, &[]);
    }
}

#[test]
fn a_table_of_blocks_is_given_back_after_all_walks_left_it() {
    for caps in TLBI_CAPS {
        round(caps, Level::L1, Level::L2, &[BASE, BASE + (511 << 21)], &[]);
    }
}

#[test]
fn a_table_of_tables_is_given_back_after_all_walks_left_it() {
    for caps in TLBI_CAPS {
        let second = BASE + (300 << 21);
        let leaves = [BASE + PAGE_SIZE, BASE + 7 * PAGE_SIZE, second, second + PAGE_SIZE];
        round(caps, Level::L1, Level::L3, &leaves, &[BASE, second]);
    }
}
