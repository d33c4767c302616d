//! Operations side by side, each with a claim of its own.
//!
//! What two claims share is a table above or around both: its lock, its slots next to each other, and
//! the flush and the grace period of the one while the other is at work.

use std::sync::Arc;

use stage2::space::{Batch, MapError, Notes, Progress};
use stage2::{Ipa, Level, PAGE_SIZE, Pa, View};

use super::clear::populate;
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{note, pages, table};
use crate::world::{Pe, Shape, World, page};

/// A guest that reads a page again and again; what it may read is `frame`.
fn guest(world: &Arc<World>, number: u64, frame: Pa) -> impl FnOnce() + use<> {
    let thread = world.thread(move |world| world.guest_reads_meanwhile(page(number)));
    move || match thread.join().unwrap() {
        Access::Fault => reached("guest faulted"),
        Access::Read(from, _) => {
            assert_eq!(from, frame);
            reached("guest read");
        }
    }
}

/// Two PEs unmap neighbours under one table, which neither of them may give back, though one of them comes to its
/// end.
pub fn unmaps_in_one_table() {
    let world = World::new(Shape::small(2, 2));
    let (a, b) = world.pe(0, &[0, 1], |pe| (populate(pe, 1), populate(pe, 2)));
    let guest = guest(&world, 1, a);
    let other = world.spawn(1, &[], |pe| pe.unmap_all(pages(2, 510), Notes::Keep));
    assert_eq!(world.pe(0, &[], |pe| pe.unmap_all(pages(0, 2), Notes::Keep)), [(page(1), a)]);
    assert_eq!(other.join().unwrap(), [(page(2), b)]);
    guest();
    assert_eq!(world.walk(page(0)).level, Level::L3, "the table stays");
    world.settle();
}

/// Two PEs give back tables side by side, whose parent they share and neither may give back.
pub fn unmaps_under_one_parent() {
    let world = World::new(Shape { ipa_bits: 39, ..Shape::small(4, 2) });
    let (a, b) = world.pe(0, &[0, 1], |pe| (populate(pe, 0), populate(pe, 512)));
    let other = world.spawn(1, &[], |pe| pe.unmap_all(table(1), Notes::Keep));
    assert_eq!(world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep)), [(page(0), a)]);
    assert_eq!(other.join().unwrap(), [(page(512), b)]);
    for number in [0, 512] {
        let last = world.walk(page(number));
        assert_eq!((last.view(), last.level), (View::Empty, Level::L2), "its table went");
    }
    reached("both went");
    world.settle();
}

/// One PE unmaps a table page by page and gives its claim up in between; another claims all of it and
/// does what is left.
pub fn an_unmap_that_another_resumes() {
    let world = World::new(Shape::small(2, 2));
    let frames = world.pe(0, &[0, 1], |pe| [populate(pe, 0), populate(pe, 1)]);
    let other = world.spawn(1, &[], |pe| {
        let (mut claim, conflicts) = pe.claim(table(0));
        if conflicts > 0 {
            reached("Conflict");
        }
        let all = Batch::all_of(&claim);
        let (done, freed) = pe.unmap(&mut claim, all, Notes::Keep);
        assert_eq!(done, Ok(Progress::Done));
        freed
    });
    let mut freed = world.pe(0, &[], |pe| {
        let (mut claim, _) = pe.claim(table(0));
        let batch = Batch { from: Ipa::new(0), slots: 1 };
        let (done, freed) = pe.unmap(&mut claim, batch, Notes::Keep);
        // Nothing was there if the other PE had been at work.
        assert!(done == Ok(Progress::Until(page(1))) || freed.is_empty(), "{done:?}");
        freed
    });
    reached(if freed.is_empty() { "all was done" } else { "resumed" });
    freed.extend(other.join().unwrap());
    assert_eq!(freed, [(page(0), frames[0]), (page(1), frames[1])], "each comes back once");
    assert_eq!(world.walk(page(0)).level, Level::L2, "the table was given back");
    world.settle();
}

/// One PE takes notes out of a table, another unmaps beside them.
pub fn an_unmap_beside_notes() {
    let world = World::new(Shape::small(2, 1));
    let frame = world.pe(0, &[0], |pe| {
        let (mut claim, _) = pe.claim(pages(2, 1));
        let frame = populate(pe, 0);
        assert_eq!(pe.annotate(&mut claim, 5), Ok(Progress::Done));
        frame
    });
    let guest = guest(&world, 0, frame);
    let other = world.spawn(1, &[], |pe| pe.deannotate(&mut pe.claim(pages(2, 2)).0));
    let freed = world.pe(0, &[], |pe| pe.unmap_all(pages(0, 2), Notes::Keep));
    assert_eq!(freed, [(page(0), frame)]);
    assert_eq!(other.join().unwrap(), [(page(2), note(5).get())]);
    guest();
    world.settle();
}

/// Two PEs map neighbours whose table does not exist yet: one table, both ranges; or one range, and
/// the other PE is told to repeat, because it met the first one's Busy slot.
pub fn maps_under_one_missing_table() {
    let world = World::new(Shape::small(4, 2));
    let map = |first: u64| {
        move |pe: &Pe<'_>| {
            let (mut claim, _) = pe.claim(pages(first, 2));
            let bytes = claim.range().bytes();
            let pa = pe.world.take_memory(first as usize / 2, bytes);
            let done = pe.map(&mut claim, pa, Level::L3);
            if done.is_err() {
                pe.world.give_memory(pa, bytes);
            }
            (pa, done)
        }
    };
    let other = world.spawn(1, &[], map(2));
    let came = [world.pe(0, &[], map(0)), other.join().unwrap()];
    for (first, (pa, done)) in [0, 2].into_iter().zip(came) {
        for number in [first, first + 1] {
            let last = world.walk(page(number));
            match done {
                Ok(progress) => {
                    assert_eq!(progress, Progress::Done);
                    let View::Leaf(leaf) = last.view() else { panic!("{number} is mapped") };
                    assert_eq!(leaf.pa().get(), pa.get() + page(number - first).get());
                }
                Err(MapError::Retry { level, seen, .. }) => {
                    assert!(matches!(seen.view(level), View::Busy(_)), "{seen:?}");
                    assert_eq!(last.view(), View::Empty, "nothing of the range is left");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    let done = came.iter().filter(|(_, done)| done.is_ok()).count();
    assert!(done > 0, "one of the two comes first");
    reached(if done == 2 { "both mapped" } else { "one met Busy" });
    world.settle();
}

/// Two PEs map neighbours under one table; one of them finds its second page occupied and takes the first back. Each
/// ends what it began, and nothing of the other's.
pub fn a_map_beside_one_that_fails() {
    let world = World::new(Shape::small(2, 3));
    let _ = world.pe(0, &[2], |pe| populate(pe, 3));
    let other = world.spawn(1, &[], |pe| {
        let (mut claim, _) = pe.claim(pages(2, 2));
        let pa = pe.world.take_memory(1, 2 * PAGE_SIZE);
        let done = pe.map(&mut claim, pa, Level::L3);
        pe.world.give_memory(pa, 2 * PAGE_SIZE);
        done
    });
    let pa = world.pe(0, &[], |pe| {
        let (mut claim, _) = pe.claim(pages(0, 2));
        let pa = pe.world.take_memory(0, 2 * PAGE_SIZE);
        assert_eq!(pe.map(&mut claim, pa, Level::L3), Ok(Progress::Done));
        pa
    });
    let failed = other.join().unwrap();
    assert!(matches!(failed, Err(MapError::Occupied { ipa, .. }) if ipa == page(3)), "{failed:?}");
    assert_eq!(world.walk(page(2)).view(), View::Empty, "nothing of what failed is left");
    assert!(matches!(world.walk(page(0)).view(), View::Leaf(leaf) if leaf.pa() == pa));
    reached("one mapped");
    world.settle();
}
