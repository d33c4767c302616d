//! Maps and notes that installs run into: all of a range, or nothing of it.

use std::sync::Arc;

use stage2::space::{MapError, Progress};
use stage2::{Descriptor, Install, InstallError, Ipa, IpaRange, Level, PAGE_SIZE, Pa, View};

use super::clear::populate;
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{note, pages, table};
use crate::world::{FILLED, Pe, Shape, World, page};

/// What an install met while another PE filled a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    Installed(Pa),
    Present(Pa),
    Busy,
    Note(u64),
}

fn install(pe: &Pe<'_>, number: u64) -> Met {
    match pe.install(page(number), Level::L3) {
        Ok(Install::Installed(pa)) => Met::Installed(pa),
        Ok(Install::Present(leaf)) => Met::Present(leaf.pa()),
        Err(InstallError::Retry { seen, level }) => {
            assert!(matches!(seen.view(level), View::Busy(_)), "{seen:?}");
            Met::Busy
        }
        Err(InstallError::Note { note, .. }) => Met::Note(note.get()),
        Err(error) => panic!("an install failed: {error:?}"),
    }
}

/// The slot at which a map or an annotate found somebody else's page.
fn occupied(error: MapError, by: Pa) -> Ipa {
    let MapError::Occupied { ipa, level, seen } = error else { panic!("{error}") };
    assert!(matches!(seen.view(level), View::Leaf(leaf) if leaf.pa() == by), "{seen:?}");
    ipa
}

/// One PE maps `range` by leaves of `coarsest` and smaller, another installs page 1 of it, and the guest
/// of a third reads page 0.
fn map(world: &Arc<World>, range: IpaRange, coarsest: Level) {
    // A block is one frame.
    let bytes = if coarsest == Level::L3 { range.bytes() } else { PAGE_SIZE };
    let installer = world.spawn(1, &[1], |pe| (install(pe, 1), pe.at_hand()));
    let guest = world.thread(|world| world.guest_reads_meanwhile(page(0)));
    let (pa, mapped) = world.pe(0, &[], |pe| {
        let (mut claim, _) = pe.claim(range);
        let pa = pe.world.take_memory(0, bytes);
        let mapped = pe.map(&mut claim, pa, coarsest);
        if mapped.is_err() {
            pe.world.give_memory(pa, bytes);
        }
        (pa, mapped)
    });
    let (met, at_hand) = installer.join().unwrap();
    let read = guest.join().unwrap();
    let second = world.walk(page(1));
    match (mapped, met) {
        (Ok(Progress::Done), met) => {
            let View::Leaf(leaf) = second.view() else { panic!("{:?} is mapped", second.seen) };
            let offset = page(1).get() % leaf.level().slot_bytes();
            assert_eq!(leaf.pa().get() + offset, pa.get() + page(1).get());
            assert_eq!(at_hand, 1, "the installer has its frame");
            if coarsest < leaf.level() {
                // The installer's table was in the way of the block: these are its four pages.
                world.enter_taken(Pa::new(pa.get() + PAGE_SIZE), 3 * PAGE_SIZE);
                reached("mapped by pages");
            }
            reached(match met {
                Met::Present(found) if found == leaf.pa() => "mapped first",
                Met::Busy => "mapped, and met Busy",
                other => panic!("{other:?}"),
            });
        }
        (Err(error), Met::Installed(frame)) => {
            assert_eq!(occupied(error, frame), page(1));
            assert_eq!(world.walk(page(0)).seen, Descriptor::EMPTY, "nothing of the map is left");
            assert!(matches!(second.view(), View::Leaf(leaf) if leaf.pa() == frame));
            reached("Occupied");
        }
        other => panic!("{other:?}"),
    }
    match read {
        Access::Fault => reached("guest faulted"),
        Access::Read(frame, content) => {
            assert_eq!((frame, content, mapped), (pa, FILLED, Ok(Progress::Done)));
            reached("guest read");
        }
    }
    world.settle();
}

/// The table of both pages is missing: the map brings one with both in it, or finds the installer's.
pub fn a_map_against_install() {
    map(&World::new(Shape::small(3, 2)), pages(0, 2), Level::L3);
}

/// The table is there.
pub fn a_map_into_a_table_against_install() {
    let world = World::new(Shape::small(2, 3));
    let _ = world.pe(0, &[2], |pe| populate(pe, 3));
    map(&world, pages(0, 2), Level::L3);
}

/// A block; if the installer brings a table first, the block becomes pages.
pub fn a_block_against_install() {
    map(&World::new(Shape::small(2, 2)), table(0), Level::L2);
}

/// One PE puts notes on two pages, another installs the second.
pub fn an_annotate_against_install() {
    let world = World::new(Shape::small(3, 1));
    let range = pages(0, 2);
    let installer = world.spawn(1, &[0], |pe| (install(pe, 1), pe.at_hand()));
    let noted = world.pe(0, &[], |pe| {
        let (mut claim, _) = pe.claim(range);
        pe.annotate(&mut claim, 5)
    });
    let (met, at_hand) = installer.join().unwrap();
    let views = [0, 1].map(|number| world.walk(page(number)).view());
    match (noted, met) {
        (Ok(Progress::Done), met) => {
            assert_eq!(views, [View::Note(note(5)); 2]);
            assert_eq!(at_hand, 1, "the installer has its frame");
            reached(match met {
                Met::Note(5) => "met the note",
                Met::Busy => "noted, and met Busy",
                other => panic!("{other:?}"),
            });
        }
        (Err(error), Met::Installed(frame)) => {
            assert_eq!(occupied(error, frame), page(1));
            assert_eq!(views[0], View::Empty, "nothing of the notes is left");
            assert!(matches!(views[1], View::Leaf(leaf) if leaf.pa() == frame));
            reached("Occupied");
        }
        other => panic!("{other:?}"),
    }
    world.settle();
}
