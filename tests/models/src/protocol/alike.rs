//! Leaves that become one, a block or a contiguous run, against who changes one of them meanwhile without a lock:
//! fault handlers, EL2 that records its own writes, and hardware.

use std::sync::Arc;

use mmu_oracle::descriptor::dirty;
use mmu_oracle::walker::Access as Purpose;
use stage2::arch::Dsb;
use stage2::space::{Batch, Collapse, Contiguous, Obstacle, Progress};
use stage2::{Arch, HwUpdate, Level, PAGE_SIZE, Pa, View};

use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{pages, table};
use crate::sched::atomic::Ordering;
use crate::world::{FILLED, Pe, Shape, World, page};

/// As many as a table has slots here, and a run members.
const PAGES: u64 = 4;
/// A mark of software's, which hardware does not read.
const MARK: u64 = 1 << 57;
/// The access flag and the dirty state.
const RECORD: u64 = 1 << 10 | 1 << 7;
const UPDATED: Shape = Shape { hw_update: HwUpdate::AccessAndDirty, ..Shape::small(2, 1) };

/// Maps all pages of table 0, side by side.
pub(super) fn map(world: &World) -> Pa {
    world.pe(0, &[], |pe| {
        let pa = world.take_memory(0, PAGES * PAGE_SIZE);
        for number in 0..PAGES {
            let content = world.frame(Pa::new(pa.get() + number * PAGE_SIZE));
            content.store(FILLED, Ordering::Relaxed);
        }
        let (mut claim, _) = pe.claim(pages(0, PAGES));
        assert_eq!(pe.map(&mut claim, pa, Level::L3), Ok(Progress::Done));
        pa
    })
}

/// The other pages of a block are not counted any more.
fn forget_parts(world: &World, pa: Pa) {
    world.give_memory(Pa::new(pa.get() + PAGE_SIZE), (PAGES - 1) * PAGE_SIZE);
}

fn collapse(pe: &Pe<'_>) -> Collapse {
    let (mut claim, _) = pe.claim(table(0));
    let (all, relax, mut told) = (Batch::all_of(&claim), pe.world.patience(), None);
    let mut heard = |_, what| {
        // Whoever hears walks from the root: he meets nothing of the batch on its way.
        let found = pe.world.space().lookup(&pe.cpu.enter(), page(0)).expect("inside the IPA size");
        assert!(matches!(found.view(), View::Leaf(_)), "heard before it is in place: {found:?}");
        told = Some(what);
    };
    let done = pe.world.space().collapse(&pe.cpu, &mut claim, all, Level::L2, relax, &mut heard);
    assert_eq!(done, Ok(Progress::Done));
    told.expect("it is told")
}

/// Sets bits in the leaf of page 1 by one exchange, without a lock, as a fault handler does; `false` if there is
/// no page, or not any more.
pub(super) fn exchange(pe: &Pe<'_>, set: u64) -> bool {
    let (hardware, _guard) = (pe.world.hardware(), pe.cpu.enter());
    let found = pe.world.walk(page(1));
    let View::Leaf(leaf) = found.view() else {
        reached("met Busy");
        return false;
    };
    if leaf.level() != Level::L3 {
        reached("found the block");
        return false;
    }
    let (old, new) = (found.seen.bits(), found.seen.bits() | set);
    // SAFETY: (1) the same translation, of a leaf that was read under this guard.
    let done = unsafe { hardware.compare_exchange(found.slot, old, new) }.expect("it has one");
    if done.is_ok() {
        // Others may come between the exchange and its barrier: a checker switches threads where memory is accessed.
        let _ = found.slot.load(hardware);
        hardware.dsb(Dsb::IshSt);
    }
    reached(if done.is_ok() { "exchanged" } else { "came too late" });
    done.is_ok()
}

/// One PE collapses a table; a fault handler, which may have found it before the break, exchanges one of its
/// leaves. What it has changed keeps the table, whenever that was; what comes too late is refused.
pub fn a_collapse_against_an_exchange() {
    let world = World::new(Shape::small(2, 1));
    let pa = map(&world);
    let handler = world.spawn(1, &[], |pe| exchange(pe, MARK));
    let what = world.pe(0, &[], collapse);
    let changed = handler.join().unwrap();
    let last = world.walk(page(1));
    if changed {
        assert_eq!(what, Collapse::Stays(Obstacle::Unlike { ipa: page(1) }));
        assert_eq!((last.level, last.seen.bits() & MARK), (Level::L3, MARK), "it is in the tree");
    } else {
        assert_eq!((what, last.level), (Collapse::Made, Level::L2));
        forget_parts(&world, pa);
    }
    world.settle();
}

/// One PE collapses a table of clean pages; EL2 records a write of its own in one, by exchange, and hardware a guest's
/// in another. The block is dirty if one of them did.
pub fn a_collapse_against_records() {
    let world = World::new(UPDATED);
    let pa = map(&world);
    let recorder = world.spawn(1, &[], |pe| exchange(pe, RECORD));
    let writer = world.thread(|world| world.hardware_accesses(2, page(2), Purpose::Write));
    assert_eq!(world.pe(0, &[], collapse), Collapse::Made);
    let (recorded, wrote) = (recorder.join().unwrap(), writer.join().unwrap());
    let last = world.walk(page(0));
    assert_eq!(last.level, Level::L2);
    assert_eq!(dirty(last.seen.bits()), recorded || wrote, "the block says what its pages said");
    reached(if wrote { "wrote" } else { "write faulted" });
    forget_parts(&world, pa);
    world.settle();
}

fn make(pe: &Pe<'_>) -> Contiguous {
    let (mut claim, _) = pe.claim(pages(0, PAGES));
    let (all, mut told) = (Batch::all_of(&claim), None);
    let mut heard = |_, what| told = Some(what);
    let space = pe.world.space();
    let done = space.make_contiguous(&pe.cpu, &mut claim, all, Level::L3, &mut heard);
    assert_eq!(done, Ok(Progress::Done));
    told.expect("it is told")
}

fn dissolve(pe: &Pe<'_>) {
    let (mut claim, _) = pe.claim(pages(0, PAGES));
    let all = Batch::all_of(&claim);
    assert_eq!(pe.world.space().dissolve(&pe.cpu, &mut claim, all), Ok(Progress::Done));
}

/// What the leaves of table 0 say.
fn leaves(world: &World) -> Vec<u64> {
    (0..PAGES).map(|number| world.walk(page(number)).seen.bits()).collect()
}

/// One PE makes a run; a fault handler exchanges one of its leaves. What it has changed before the break keeps the
/// run from being made; afterwards it changes a member, as it may in any leaf.
pub fn a_run_against_an_exchange() {
    let world = World::new(Shape::small(2, 1));
    map(&world);
    let handler = world.spawn(1, &[], |pe| exchange(pe, MARK));
    let what = world.pe(0, &[], make);
    let changed = handler.join().unwrap();
    let (leaves, contiguous) = (leaves(&world), 1 << 52);
    let marked: Vec<bool> = leaves.iter().map(|bits| bits & MARK != 0).collect();
    assert_eq!(marked, [false, changed, false, false], "no exchange is lost");
    let made = what == Contiguous::Made;
    assert!(changed || made, "nobody was in the way");
    assert!(
        leaves.iter().all(|bits| bits & 1 != 0 && (bits & contiguous != 0) == made),
        "{what:?}"
    );
    reached(if made { "made" } else { "stays" });
    world.settle();
}

/// One PE makes a run and dissolves it, while hardware records a write in one of its pages and a guest reads another.
pub fn a_run_comes_and_goes() {
    let world = World::new(UPDATED);
    let pa = map(&world);
    let writer = world.thread(|world| world.hardware_accesses(2, page(2), Purpose::Write));
    let reader = {
        let world = Arc::clone(&world);
        world.thread(move |world| match world.guest_reads_meanwhile(page(1)) {
            Access::Fault => reached("guest faulted"),
            Access::Read(from, _) => {
                assert_eq!(from.get(), pa.get() + PAGE_SIZE);
                reached("guest read");
            }
        })
    };
    world.pe(0, &[], |pe| {
        assert_eq!(make(pe), Contiguous::Made);
        dissolve(pe);
    });
    let wrote = writer.join().unwrap();
    reader.join().unwrap();
    let leaves = leaves(&world);
    assert!(leaves.iter().all(|bits| bits & (1 << 52) == 0), "dissolved");
    assert!(!wrote || dirty(leaves[2]), "the record of the write is lost");
    assert!(wrote || !leaves.iter().any(|bits| dirty(*bits)), "nobody wrote");
    reached(if wrote { "wrote" } else { "write faulted" });
    world.settle();
}
