//! Clears that installs run into: live → Drain, flush, then Empty or the next page.

use mmu_oracle::Event;
use stage2::tlbi::LeafLevel;
use stage2::{Descriptor, Install, InstallError, IpaRange, Level, Pa, View};

use crate::guest::Access;
use crate::outcome::reached;
use crate::sched::atomic::Ordering;
use crate::world::{FILLED, Pe, Shape, World, page};

/// What the guest wrote into its page.
const WRITTEN: u64 = 0x900d;

/// What an install met while another PE changed the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Installed(Pa),
    Present(Pa),
    Retry,
}

pub(super) fn install(pe: &Pe<'_>, number: u64) -> Met {
    match pe.install(page(number), Level::L3) {
        Ok(Install::Installed(pa)) => Met::Installed(pa),
        Ok(Install::Present(leaf)) => Met::Present(leaf.pa()),
        Err(InstallError::Retry { seen, level }) => {
            let view = seen.view(level);
            assert!(matches!(view, View::Drain(_) | View::Dead), "{seen:?}");
            Met::Retry
        }
        Err(error) => panic!("an install failed: {error:?}"),
    }
}

/// Populates a page, and the guest writes to it.
pub(super) fn populate(pe: &Pe<'_>, number: u64) -> Pa {
    let Met::Installed(frame) = install(pe, number) else { panic!("nobody else is here yet") };
    pe.world.frame(frame).store(WRITTEN, Ordering::Relaxed);
    frame
}

/// A leaf that is like another one, for another frame.
pub(super) fn elsewhere(leaf: Descriptor, from: Pa, to: Pa) -> Descriptor {
    Descriptor::from_bits(leaf.bits() - from.get() + to.get())
}

/// Takes a page away: the caller holds the lock of its table. Returns the frame, and the final word on
/// its accessed and dirty state.
pub(super) fn clear(pe: &Pe<'_>, number: u64) -> (Pa, Descriptor) {
    let (world, range) = (pe.world, IpaRange::page_of(page(number)).unwrap());
    let found = world.walk(page(number));
    // SAFETY: (1) this PE alone takes pages away, and the page is there.
    let drained = unsafe { found.slot.clear(world.hardware(), Level::L3) }.expect("live");
    let View::Leaf(leaf) = drained.old().view(Level::L3) else {
        panic!("{:?} was live", drained.old())
    };
    let flushed = world.space().tlb().reduce(range, LeafLevel::L3);
    world.oracle().note(|pe| Event::Harvested { pe, slot: found.address, count: 1 });
    // SAFETY: (1) flushed above.
    let old = unsafe { drained.release(world.hardware(), &flushed) };
    world.free_frame(leaf.pa());
    (leaf.pa(), old)
}

/// A page is taken away while another PE faults on it, twice.
pub fn against_install() {
    let world = World::new(Shape::small(2, 2));
    let old = world.pe(0, &[0], |pe| populate(pe, 0));
    let installer = world.spawn(1, &[1], |pe| {
        let met = [install(pe, 0), install(pe, 0)];
        (met, pe.at_hand())
    });
    let (cleared, _) = world.pe(0, &[], |pe| clear(pe, 0));
    assert_eq!(cleared, old);
    let ([first, second], at_hand) = installer.join().unwrap();
    // In the order in which the slot changes: it never goes back.
    let stage = |met: Met| match met {
        Met::Present(pa) if pa == old => 0,
        Met::Retry => 1,
        Met::Installed(_) => 2,
        Met::Present(_) => 3,
    };
    assert!(stage(first) <= stage(second), "{first:?}, then {second:?}");
    let installed = stage(second) >= 2;
    assert_eq!(at_hand, usize::from(!installed));
    reached(match (stage(first), stage(second)) {
        (0, 0) => "before",
        (_, 1) => "met Drain",
        (0 | 1, 2) => "installed at the second try",
        (2, 3) => "installed at once",
        other => panic!("{other:?}"),
    });
    let last = world.walk(page(0)).seen;
    assert_eq!(last == Descriptor::EMPTY, !installed, "{last:?}");
    world.settle();
}

/// Two PEs fault on a page that a third takes away.
pub fn against_two_installs() {
    let world = World::new(Shape::small(2, 3));
    let _ = world.pe(0, &[0], |pe| populate(pe, 0));
    let a = world.spawn(1, &[1], |pe| install(pe, 0));
    let b = world.spawn(2, &[2], |pe| install(pe, 0));
    let (old, _) = world.pe(0, &[], |pe| clear(pe, 0));
    let (a, b) = (a.join().unwrap(), b.join().unwrap());
    match (a, b) {
        (Met::Installed(x), Met::Installed(y)) => panic!("both installed: {x} and {y}"),
        (Met::Installed(x), Met::Present(y)) | (Met::Present(y), Met::Installed(x)) => {
            assert!(y == x || y == old, "{y}");
            reached("one installed, one found a page");
        }
        (Met::Installed(_), Met::Retry) | (Met::Retry, Met::Installed(_)) => {
            reached("one installed, one met Drain");
        }
        _ => reached("none installed"),
    }
    world.settle();
}

/// A page moves to another frame while a PE faults on it and a guest reads it.
pub fn a_move_against_install() {
    let world = World::new(Shape::small(2, 3));
    let old = world.pe(0, &[0], |pe| populate(pe, 0));
    let installer = world.spawn(1, &[1], |pe| (install(pe, 0), pe.at_hand()));
    let reader = world.spawn(2, &[], |pe| pe.world.guest_reads(page(0)));
    let new = world.pe(0, &[2], |pe| {
        let range = IpaRange::page_of(page(0)).unwrap();
        let found = world.walk(page(0));
        let new = pe.take();
        // SAFETY: (1) this PE alone moves pages, and the page is there.
        let drained = unsafe { found.slot.clear(world.hardware(), Level::L3) }.expect("live");
        let flushed = world.space().tlb().reduce(range, LeafLevel::L3);
        // Nobody writes to the old frame any more: what is copied is complete.
        let content = world.frame(old).load(Ordering::Relaxed);
        world.frame(new).store(content, Ordering::Relaxed);
        let moved = elsewhere(found.seen, old, new);
        // SAFETY: (1) flushed above. (2) The frame is the VM's, and was filled.
        unsafe { drained.replace(world.hardware(), &flushed, moved) };
        world.free_frame(old);
        new
    });
    match installer.join().unwrap() {
        (Met::Present(pa), 1) if pa == old => reached("install before"),
        (Met::Present(pa), 1) if pa == new => reached("install after"),
        (Met::Retry, 1) => reached("install met Drain"),
        other => panic!("{other:?}"),
    }
    match reader.join().unwrap() {
        Access::Fault => reached("guest faulted"),
        Access::Read(frame, content) => {
            assert_eq!(content, WRITTEN, "the guest finds what it wrote");
            reached(if frame == old { "guest read before" } else { "guest read after" });
        }
    }
    world.settle();
}

/// Two PEs take away neighbours, each its own: flushes side by side.
pub fn two_side_by_side() {
    let world = World::new(Shape::small(2, 2));
    let (a, b) = world.pe(0, &[0, 1], |pe| (populate(pe, 0), populate(pe, 1)));
    let other = world.spawn(1, &[], |pe| clear(pe, 1));
    assert_eq!(world.pe(0, &[], |pe| clear(pe, 0)).0, a);
    assert_eq!(other.join().unwrap().0, b);
    reached("both cleared");
    world.settle();
}

/// Pages come and go: two PEs fault on two pages again and again, one takes each away when it is there.
pub fn churn() {
    const ROUNDS: usize = 3;
    let world = World::new(Shape::small(2, 14));
    let _ = world.pe(0, &[12, 13], |pe| (populate(pe, 0), populate(pe, 1)));
    let installers: Vec<_> = [(1, &[0, 1, 2, 3, 4, 5]), (2, &[6, 7, 8, 9, 10, 11])]
        .map(|(n, frames)| {
            world.spawn(n, frames, |pe| {
                for round in 0..2 * ROUNDS {
                    match install(pe, round as u64 % 2) {
                        Met::Installed(_) => reached("installed"),
                        Met::Present(_) => reached("was present"),
                        Met::Retry => reached("met Drain"),
                    }
                }
            })
        })
        .into();
    let reader = world.spawn(3, &[], |pe| {
        for number in [0, 1, 0, 1] {
            if let Access::Read(_, content) = pe.world.guest_reads(page(number)) {
                assert!([WRITTEN, FILLED].contains(&content), "{content:#x}");
                reached("guest read");
            }
        }
    });
    world.pe(0, &[], |pe| {
        for round in 0..2 * ROUNDS {
            let number = round as u64 % 2;
            if world.walk(page(number)).seen.is_valid() {
                clear(pe, number);
                reached("cleared");
            }
        }
    });
    installers.into_iter().for_each(|thread| thread.join().unwrap());
    reader.join().unwrap();
    world.settle();
}
