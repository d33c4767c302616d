//! Blocks that become tables and tables that become blocks, against fault handlers, lock holders, guests and
//! neighbours.

use std::sync::Arc;

use stage2::space::{Batch, Collapse, Notes, Obstacle, Progress};
use stage2::tlbi::LeafLevel;
use stage2::{Arch, Bbm, Descriptor, Install, InstallError, Level, PAGE_SIZE, Pa, View};

use super::clear::populate;
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{pages, table};
use crate::sched::atomic::Ordering;
use crate::sched::thread;
use crate::world::{FILLED, Pe, Shape, World, page};

/// A block has as many pages here as a table has slots.
const PAGES: u64 = 4;
/// What somebody without a claim may change in a leaf: a mark of software's, which hardware does not read.
const MARK: u64 = 1 << 57;

/// The pages of a block but the first: what a block does not count, and its table does.
const fn rest(pa: Pa) -> (Pa, u64) {
    (Pa::new(pa.get() + PAGE_SIZE), (PAGES - 1) * PAGE_SIZE)
}

/// Maps table 0's span by a block, or its pages.
fn map(world: &World, coarsest: Level) -> Pa {
    world.pe(0, &[], |pe| {
        let (range, bytes) = match coarsest {
            Level::L3 => (pages(0, PAGES), PAGES * PAGE_SIZE),
            _ => (table(0), PAGE_SIZE),
        };
        let pa = world.take_memory(0, bytes);
        for number in 0..PAGES {
            let content = world.frame(Pa::new(pa.get() + number * PAGE_SIZE));
            content.store(FILLED, Ordering::Relaxed);
        }
        let (mut claim, _) = pe.claim(range);
        assert_eq!(pe.map(&mut claim, pa, coarsest), Ok(Progress::Done));
        pa
    })
}

/// Collapses table 0.
fn collapse(pe: &Pe<'_>) -> Collapse {
    let (mut claim, _) = pe.claim(table(0));
    let (all, relax, mut told) = (Batch::all_of(&claim), pe.world.patience(), None);
    let mut heard = |ipa, what| assert_eq!((ipa, told.replace(what)), (page(0), None));
    let done = pe.world.space().collapse(&pe.cpu, &mut claim, all, Level::L2, relax, &mut heard);
    assert_eq!(done, Ok(Progress::Done));
    told.expect("it is told")
}

/// A guest that reads page 1, by the block or by the page.
fn guest(world: &Arc<World>, pa: Pa) -> thread::JoinHandle<()> {
    world.thread(move |world| match world.guest_reads_meanwhile(page(1)) {
        Access::Fault => reached("guest faulted"),
        Access::Read(from, _) if from == pa => reached("guest read the block"),
        Access::Read(from, _) => {
            assert_eq!(from, rest(pa).0);
            reached("guest read the page");
        }
    })
}

/// One PE splits a block, another faults on a page of it and would populate it, and a guest reads there.
pub fn a_split_against_install() {
    let world = World::new(Shape::small(2, 2));
    let pa = map(&world, Level::L2);
    let handler = world.spawn(1, &[1], |pe| {
        match pe.install(page(1), Level::L3) {
            Ok(Install::Present(leaf)) if leaf.level() == Level::L2 => reached("found the block"),
            Ok(Install::Present(_)) => reached("found the page"),
            Err(InstallError::Retry { .. }) => reached("met Busy"),
            other => panic!("{other:?}"),
        }
        assert_eq!(pe.at_hand(), 1, "the frame stays at hand");
    });
    let guest = guest(&world, pa);
    world.pe(0, &[], |pe| {
        let (mut claim, _) = pe.claim(table(0));
        let all = Batch::all_of(&claim);
        let split = world.space().split(&pe.cpu, &mut claim, all, Level::L3);
        assert_eq!(split, Ok(Progress::Done));
    });
    handler.join().unwrap();
    guest.join().unwrap();
    for number in 0..PAGES {
        let View::Leaf(leaf) = world.walk(page(number)).view() else { panic!("page {number}") };
        assert_eq!((leaf.level(), leaf.pa().get()), (Level::L3, pa.get() + number * PAGE_SIZE));
    }
    world.enter_taken(rest(pa).0, rest(pa).1);
    world.settle();
}

/// Splits table 0's block.
fn split(pe: &Pe<'_>) {
    let (mut claim, _) = pe.claim(table(0));
    let all = Batch::all_of(&claim);
    let split = pe.world.space().split(&pe.cpu, &mut claim, all, Level::L3);
    assert_eq!(split, Ok(Progress::Done));
    assert_eq!(pe.world.space().account().split_live.iter().sum::<u64>(), 1, "with no break");
}

/// One PE splits a block without a break, a guest reads there and never faults, and another PE makes a page of it
/// read-only by what it finds: the block, which it leaves alone, or the page under its lock, with a flush that is good for
/// a page. Whoever holds the block until then writes on.
fn a_live_split_against_a_reduction(bbm: Bbm) {
    const WRITABLE: u64 = 1 << 7;
    let world = World::new(Shape { bbm, ..Shape::small(2, 1) });
    let pa = map(&world, Level::L2);
    let other = world.spawn(1, &[], |pe| {
        let (hardware, guard) = (pe.world.hardware(), pe.cpu.enter());
        let found = pe.world.space().lookup_rw(&guard, page(1)).expect("inside the IPA size");
        if found.level() != Level::L3 {
            return reached_not("found the block");
        }
        let locked = found.lock().expect("nobody takes the table away");
        let slot = locked.slot(page(1)).expect("in this table");
        let old = slot.load(hardware).bits();
        // SAFETY: (1) the table's lock is held; (2) the same translation, with less permission.
        let was = unsafe { hardware.swap(slot, old & !WRITABLE) };
        assert_eq!(was, old, "nobody else writes it");
        let _ = pe.world.space().tlb().reduce(pages(1, 1), LeafLevel::L3);
        reached("made a page read-only");
        true
    });
    let guest = world.thread(move |world| match world.guest_reads_meanwhile(page(1)) {
        Access::Fault => panic!("nothing is invalid at any time"),
        Access::Read(from, _) if from == pa => reached("guest read the block"),
        Access::Read(..) => reached("guest read the page"),
    });
    world.pe(0, &[], split);
    let reduced = other.join().unwrap();
    guest.join().unwrap();
    let last = world.walk(page(1));
    assert_eq!((last.level, last.seen.bits() & WRITABLE == 0), (Level::L3, reduced));
    world.enter_taken(rest(pa).0, rest(pa).1);
    world.settle();
}

/// [`a_live_split_against_a_reduction`] by nT.
pub fn a_split_by_nt_against_a_reduction() {
    a_live_split_against_a_reduction(Bbm::Level1);
}

/// [`a_live_split_against_a_reduction`] at once.
pub fn a_split_at_once_against_a_reduction() {
    a_live_split_against_a_reduction(Bbm::Level2);
}

/// A collapse that somebody has met: the table stays, with his mark, if he has changed it.
fn came_to(world: &World, pa: Pa, what: Collapse, changed: bool) {
    let last = world.walk(page(1));
    if changed {
        assert_eq!(what, Collapse::Stays(Obstacle::Unlike { ipa: page(1) }));
        assert_eq!((last.level, last.seen.bits() & MARK), (Level::L3, MARK), "it is in the tree");
    } else {
        assert_eq!((what, last.level), (Collapse::Made, Level::L2));
        world.give_memory(rest(pa).0, rest(pa).1);
    }
    world.settle();
}

fn reached_not(name: &'static str) -> bool {
    reached(name);
    false
}

/// One PE collapses a table, another looks one of its leaves up to write it under the lock: it is told `Stale`, or
/// what it wrote keeps the table; and a guest reads there.
pub fn a_collapse_against_a_write() {
    let world = World::new(Shape::small(2, 1));
    let pa = map(&world, Level::L3);
    let writer = world.spawn(1, &[], |pe| {
        let (hardware, guard) = (pe.world.hardware(), pe.cpu.enter());
        let found = pe.world.space().lookup_rw(&guard, page(1)).expect("inside the IPA size");
        if found.level() != Level::L3 {
            return reached_not("found no table");
        }
        let Ok(locked) = found.lock() else { return reached_not("Stale") };
        let slot = locked.slot(page(1)).expect("in this table");
        let old = slot.load(hardware);
        assert!(old.is_valid(), "a table whose lock is held is in the tree: {old:?}");
        let new = Descriptor::from_bits(old.bits() | MARK);
        // SAFETY: (1) the table's lock is held; (2) the same translation.
        let was = unsafe { hardware.swap(slot, new.bits()) };
        assert_eq!(was, old.bits(), "nobody else writes it");
        reached("wrote");
        true
    });
    let guest = guest(&world, pa);
    let what = world.pe(0, &[], collapse);
    let wrote = writer.join().unwrap();
    guest.join().unwrap();
    came_to(&world, pa, what, wrote);
}

/// One PE collapses a table, another gives back the next one under the same parent.
pub fn a_collapse_beside_an_unmap() {
    let world = World::new(Shape::small(3, 2));
    let pa = map(&world, Level::L3);
    let frame = world.pe(0, &[1], |pe| populate(pe, 512));
    let other = world.spawn(1, &[], |pe| pe.unmap_all(table(1), Notes::Keep));
    assert_eq!(world.pe(0, &[], collapse), Collapse::Made);
    assert_eq!(other.join().unwrap(), [(page(512), frame)]);
    let last = world.walk(page(512));
    assert_eq!((last.view(), last.level), (View::Empty, Level::L2), "its table went");
    assert_eq!(world.walk(page(0)).level, Level::L2);
    reached("both went");
    world.give_memory(rest(pa).0, rest(pa).1);
    world.settle();
}
