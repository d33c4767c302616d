//! A table is taken out of the tree and reused while PEs may be on their way into it.
//!
//! The order is the design's: every slot becomes non-installable while the table is still linked, the
//! parent's becomes Drain, one flush over the span, a grace period for the guards, and only then is
//! anything written into the page.

use mmu_oracle::Event;
use stage2::slot::Drained;
use stage2::{Arch, Descriptor, Ipa, IpaRange, Level, Memory, Pa, View};

use super::clear::{Met, install, populate};
use crate::outcome::reached;
use crate::world::{Pe, Shape, World, page};

/// Takes away the table of level 3 that serves the first pages, and what is mapped in it.
fn retire(pe: &Pe<'_>) {
    let world = pe.world;
    let hardware = world.hardware();
    let span = IpaRange::new(Ipa::new(0), Level::L3.table_bytes()).unwrap();
    let root = world.root(page(0));
    let parent = &hardware.slots(root)[0];
    let View::Table(table) = parent.load(hardware).view(Level::L2) else { panic!("no table") };
    let locked = |what: &dyn Fn()| {
        world.oracle().note(|pe| Event::Lock { pe, table: table.get() });
        what();
        world.oracle().note(|pe| Event::Unlock { pe, table: table.get() });
    };

    world.oracle().note(|pe| Event::Lock { pe, table: root.get() });
    world.oracle().note(|pe| Event::Lock { pe, table: table.get() });
    let drained: Vec<Drained<'_>> =
        hardware.slots(table).iter().filter_map(|slot| close(pe, slot)).collect();
    // SAFETY: (1) this PE has the lock, and the table is linked.
    let unlinked = unsafe { parent.clear(hardware) };
    let flushed = world.space().tlb().table(span);
    world.oracle().note(|pe| Event::Unlock { pe, table: table.get() });
    world.oracle().note(|pe| Event::Unlock { pe, table: root.get() });

    pe.cpu.wait(world.patience()).expect("outside a guard");
    locked(&|| {
        for slot in hardware.slots(table) {
            if slot.load(hardware) == Descriptor::DEAD {
                // SAFETY: (1) Dead since `close`; (2) no PE can come here any more.
                unsafe { hardware.store(slot, 0) };
            }
        }
    });
    for slot in drained {
        // SAFETY: (1) flushed above, the whole span.
        let old = unsafe { slot.release(hardware, &flushed) };
        let View::Leaf(leaf) = old.view(Level::L3) else { panic!("{old:?} was live") };
        world.free_frame(leaf.pa());
    }
    // SAFETY: (1) flushed above, the whole span.
    unsafe { unlinked.release(hardware, &flushed) };
    // SAFETY: (1) allocated by an install, and unlinked. (2) Flushed and waited for. (3) Emptied.
    unsafe { hardware.free_table(table, 1) };
}

/// Makes a slot of the dying table non-installable: Empty → Dead, live → Drain.
fn close<'w>(pe: &Pe<'w>, slot: &'w stage2::Slot) -> Option<Drained<'w>> {
    let hardware = pe.world.hardware();
    // SAFETY: (1) Empty may become Dead under the table's lock.
    let closed = unsafe { hardware.compare_exchange(slot, 0, Descriptor::DEAD.bits()) };
    match closed.expect("this machine has the atomic") {
        Ok(_) => None,
        // SAFETY: (1) this PE has the lock; what is not Empty here is live.
        Err(_) => Some(unsafe { slot.clear(hardware) }),
    }
}

/// One PE retires a table with a page in it while another installs a neighbour of that page, and then
/// again: into the old table, or into a new one, which may be the same memory.
pub fn against_install() {
    let world = World::new(Shape::small(3, 3));
    let _ = world.pe(0, &[0], |pe| populate(pe, 0));
    let installer = world.spawn(1, &[1, 2], |pe| [install(pe, 1), install(pe, 1)]);
    world.pe(0, &[], retire);
    let met = installer.join().unwrap();
    let last: Option<Pa> = match world.walk(page(1)).view() {
        View::Leaf(leaf) => Some(leaf.pa()),
        _ => None,
    };
    reached(match met {
        [Met::Installed(pa), Met::Present(same)] if pa == same && last == Some(pa) => "after",
        [Met::Installed(pa), Met::Present(same)] if pa == same && last.is_none() => "before",
        [Met::Installed(_), Met::Retry] if last.is_none() => "before, then met Dead or Drain",
        [Met::Installed(_), Met::Installed(pa)] if last == Some(pa) => "before and after",
        [Met::Retry, Met::Installed(pa)] if last == Some(pa) => "met Dead or Drain, then after",
        [Met::Retry, Met::Retry] if last.is_none() => "met Dead or Drain",
        other => panic!("{other:?}, and last {last:?}"),
    });
    world.settle();
}
