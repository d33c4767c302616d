//! Hardware that sets the access flag and the dirty state while software changes the slot.

use mmu_oracle::descriptor::{accessed, dirty};
use mmu_oracle::walker::Access;
use stage2::HwUpdate;

use super::{clear, install};
use crate::outcome::reached;
use crate::world::{Shape, World, page};

const SHAPE: Shape = Shape { hw_update: HwUpdate::AccessAndDirty, ..Shape::small(2, 3) };

/// A page is taken away while one PE's guest writes to it and another's walks there speculatively. What
/// the clear returns is the final word: every write that went through is in it, and no other.
pub fn a_clear_has_the_last_word() {
    let world = World::new(SHAPE);
    let _ = world.pe(0, &[0], |pe| clear::populate(pe, 0));
    let writer = world.thread(|world| world.hardware_accesses(1, page(0), Access::Write));
    let walker = world.thread(|world| world.hardware_accesses(2, page(0), Access::Speculative));
    let (_, last) = world.pe(0, &[], |pe| clear::clear(pe, 0));
    let (wrote, walked) = (writer.join().unwrap(), walker.join().unwrap());
    assert_eq!(dirty(last.bits()), wrote, "the final dirty state is what the guest did");
    assert_eq!(accessed(last.bits()), wrote || walked, "and so is the access flag");
    reached(if wrote { "wrote" } else { "write faulted" });
    reached(if walked { "walked" } else { "walk faulted" });
    world.settle();
}

/// Two PEs fault on a page while the guest of a third writes to it as soon as it is there.
pub fn a_page_is_written_as_it_comes() {
    let world = World::new(SHAPE);
    let _ = world.pe(0, &[2], |pe| clear::populate(pe, 1));
    let a = world.spawn(0, &[0], |pe| install::install(pe, 0));
    let writer = world.thread(|world| world.hardware_accesses(2, page(0), Access::Write));
    let b = world.pe(1, &[1], |pe| install::install(pe, 0));
    let frame = install::one_winner(a.join().unwrap(), b);
    let wrote = writer.join().unwrap();
    let last = world.walk(page(0)).seen;
    assert_eq!((dirty(last.bits()), accessed(last.bits())), (wrote, wrote), "{frame}");
    reached(if wrote { "wrote" } else { "write faulted" });
    world.settle();
}
