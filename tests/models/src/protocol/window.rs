//! EL2's window against those who take pages away or move them: faults of EL2 fill it by a compare-exchange, at any moment.

use stage2::space::{Batch, CopyCollapse, Notes, Progress, WriteError};
use stage2::window::Recovered;
use stage2::{Install, Level, View};

use super::copy;
use crate::el2::{El2Access, TABLES};
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{Freed, pages};
use crate::sched::atomic::Ordering;
use crate::world::{FILLED, Pe, SECRET, Shape, World, page};

/// What EL2 writes into a page.
const WRITTEN: u64 = 0xbeef;

/// A VM with page 0 mapped, and EL2's window over it.
fn opened(frames: usize) -> std::sync::Arc<World> {
    let world = World::new(Shape::small(2 + TABLES, frames));
    world.open_window();
    world.pe(0, &[0], |pe| {
        let done = pe.install(page(0), Level::L3);
        assert!(matches!(done, Ok(Install::Installed(_))));
    });
    world
}

/// One PE unmaps a page, and its frame serves somebody else at once. EL2 of another reads it by way of the window, with no guard
/// but that of its fault handler.
pub fn a_fault_of_el2_against_unmap() {
    let world = opened(1);
    let reader = world.spawn(1, &[], |pe| {
        let read = || match pe.world.el2_reads_meanwhile(page(0)) {
            Access::Fault => None,
            Access::Read(..) => Some(()),
        };
        match pe.el2(0, false, read) {
            El2Access::Done(()) => reached("read"),
            El2Access::Ended(Recovered::Fill) => reached("nothing was there"),
            El2Access::Ended(Recovered::Retry) => reached("met Drain"),
            El2Access::Ended(other) => panic!("{other:?}"),
        }
    });
    world.pe(0, &[], |pe| _ = pe.unmap_all(pages(0, 1), Notes::Keep));
    reader.join().unwrap();
    world.settle();
}

/// The page is in EL2's window already, and goes; meanwhile EL2 of another PE reads it.
pub fn a_read_of_el2_against_unmap() {
    let world = opened(1);
    world.pe(1, &[], |pe| {
        let recovered = pe.world.space().recover_window(&pe.cpu.enter(), page(0), false);
        assert_eq!(recovered, Recovered::Mapped);
    });
    let reader = world.spawn(1, &[], |pe| match pe.world.el2_reads_meanwhile(page(0)) {
        Access::Fault => reached("faulted"),
        Access::Read(..) => reached("read"),
    });
    world.pe(0, &[], |pe| _ = pe.unmap_all(pages(0, 1), Notes::Keep));
    reader.join().unwrap();
    world.settle();
}

/// EL2 of two PEs faults at one page: one fills the slot, both go on.
pub fn two_faults_of_el2_at_one_page() {
    let world = opened(1);
    let fault = |pe: &Pe<'_>| {
        let read = || match pe.world.el2_reads_meanwhile(page(0)) {
            Access::Fault => None,
            Access::Read(_, content) => Some(content),
        };
        assert_eq!(pe.el2(0, false, read), El2Access::Done(FILLED));
    };
    let other = world.spawn(1, &[], move |pe| fault(pe));
    world.pe(0, &[], fault);
    other.join().unwrap();
    reached("both read");
    world.settle();
}

/// EL2 writes for its guest by way of the window, with its record, under a guard: as it writes to an address that stage 2 has
/// told.
fn write(pe: &Pe<'_>, number: u64) -> Result<(), Option<Recovered>> {
    let guard = pe.cpu.enter();
    let through = pe.world.space().write_through(&guard, page(number), |_| {
        let store = || {
            pe.el2_word(number)?.store(WRITTEN, Ordering::Relaxed);
            Some(())
        };
        pe.el2(number, true, store)
    });
    match through {
        Ok(El2Access::Done(())) => Ok(()),
        Ok(El2Access::Ended(why)) => Err(Some(why)),
        Err(WriteError::Again { .. } | WriteError::NotMapped { .. }) => Err(None),
        Err(other) => panic!("{other}"),
    }
}

/// What page 0 holds in the end, as a guest finds it.
fn content(world: &World) -> u64 {
    let found = world.walk(page(0));
    let View::Leaf(leaf) = found.view() else { panic!("page 0 is mapped") };
    world.frame(leaf.pa()).load(Ordering::Relaxed)
}

/// One PE copies a table into a block, another writes a page of it by way of EL2's window.
pub fn a_fault_of_el2_against_a_copy() {
    let world = World::new(Shape::small(2 + TABLES, 2));
    world.open_window();
    let _ = copy::map(&world, copy::PAGES);
    let writer = world.spawn(1, &[], |pe| {
        let wrote = write(pe, 0);
        reached(match wrote {
            Ok(()) => "wrote",
            Err(Some(Recovered::Retry)) => "met Drain in its fault",
            Err(None) => "again",
            Err(Some(other)) => panic!("{other:?}"),
        });
        wrote.is_ok()
    });
    assert_eq!(world.pe(0, &[], copy::copy), CopyCollapse::Made { filled: 0 });
    if writer.join().unwrap() {
        assert_eq!(content(&world), WRITTEN, "a write by way of EL2's window was lost");
    }
    world.settle();
}

/// EL2 holds the lock of the page's table and a guard when its access faults; another PE wants the lock, to unmap the page. It
/// has to wait for both, and EL2 for nobody.
pub fn a_nested_fault_of_el2_against_unmap() {
    let world = opened(1);
    let holder = world.spawn(1, &[], |pe| {
        let guard = pe.cpu.enter();
        let found = pe.world.space().lookup_rw(&guard, page(0)).expect("inside the IPA size");
        let Ok(_locked) = found.lock() else { return };
        let read = || Some(pe.el2_word(0)?.load(Ordering::Relaxed));
        match pe.el2(0, false, read) {
            El2Access::Done(content) => {
                assert_ne!(content, SECRET, "what is reached under a guard stays while it is open");
                reached("read under the lock");
            }
            El2Access::Ended(Recovered::Fill) => reached("nothing was there"),
            El2Access::Ended(Recovered::Retry) => reached("met Drain"),
            El2Access::Ended(other) => panic!("{other:?}"),
        }
    });
    world.pe(0, &[], |pe| _ = pe.unmap_all(pages(0, 1), Notes::Keep));
    holder.join().unwrap();
    world.settle();
}

/// A page is unmapped and another takes its place; EL2 of a third PE reaches one of them, or none.
pub fn a_page_changes_behind_el2s_window() {
    let world = opened(2);
    let reader = world.spawn(1, &[], |pe| {
        let read = || match pe.world.el2_reads_meanwhile(page(0)) {
            Access::Fault => None,
            Access::Read(from, _) => Some(from),
        };
        match pe.el2(0, false, read) {
            El2Access::Done(from) if from.get() & (2 << 20) == 0 => reached("read the old"),
            El2Access::Done(_) => reached("read the new"),
            El2Access::Ended(Recovered::Fill | Recovered::Retry) => reached("ended"),
            El2Access::Ended(other) => panic!("{other:?}"),
        }
    });
    world.pe(0, &[1], |pe| {
        let (mut claim, _) = pe.claim(pages(0, 1));
        let mut freed = Freed::new(pe.world);
        let (all, relax) = (Batch::all_of(&claim), pe.world.patience());
        let space = pe.world.space();
        let done = space.unmap(&pe.cpu, &mut claim, all, Notes::Keep, relax, &mut freed);
        assert_eq!(done, Ok(Progress::Done));
        assert!(matches!(pe.install(page(0), Level::L3), Ok(Install::Installed(_))));
    });
    reader.join().unwrap();
    world.settle();
}
