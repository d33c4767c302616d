//! Everything at once, for the checker that picks interleavings: operations on ranges of several PEs,
//! fault handlers, EL2's own accesses and a guest, on two tables under one.

use stage2::space::{Batch, MapError, Notes, Progress};
use stage2::{Install, InstallError, Level, View};

use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{pages, table};
use crate::sched::atomic::Ordering;
use crate::world::{Pe, SECRET, Shape, World, page};

/// What a PE does to a range, in turn.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Unmaps it, so many slots at a time, and gives the claim up in between.
    Unmap(usize),
    /// Maps it to memory of this number.
    Map(usize),
    /// Puts notes there.
    Annotate,
    /// Takes them out.
    Deannotate,
}

/// Pages that everybody works on: four of each of two tables.
const PAGES: [u64; 8] = [0, 1, 2, 3, 512, 513, 514, 515];

/// Why a range was not filled.
fn refusal(error: MapError) -> &'static str {
    match error {
        MapError::Occupied { .. } => "Occupied",
        MapError::Retry { .. } => "met another's Busy slot",
        other => panic!("{other}"),
    }
}

fn step(pe: &Pe<'_>, step: Step, first: u64, count: u64) {
    let range = if count == 512 { table(first / 512) } else { pages(first, count) };
    match step {
        Step::Unmap(slots) => {
            let mut from = range.start();
            loop {
                let (mut claim, conflicts) = pe.claim(range);
                if conflicts > 0 {
                    reached("Conflict");
                }
                let (done, freed) = pe.unmap(&mut claim, Batch { from, slots }, Notes::Keep);
                reached(if freed.is_empty() { "nothing to unmap" } else { "unmapped" });
                match done {
                    Ok(Progress::Done) => break,
                    Ok(Progress::Until(next)) => from = next,
                    Err(other) => panic!("{other}"),
                }
            }
        }
        Step::Map(number) => {
            let (mut claim, _) = pe.claim(range);
            let pa = pe.world.take_memory(number, range.bytes());
            match pe.map(&mut claim, pa, Level::L3) {
                Ok(Progress::Done) => reached("mapped"),
                Err(error @ (MapError::Occupied { .. } | MapError::Retry { .. })) => {
                    pe.world.give_memory(pa, range.bytes());
                    reached(refusal(error));
                }
                other => panic!("{other:?}"),
            }
        }
        Step::Annotate => {
            let (mut claim, _) = pe.claim(range);
            match pe.annotate(&mut claim, 5) {
                Ok(Progress::Done) => reached("noted"),
                Err(error) => reached(refusal(error)),
                other => panic!("{other:?}"),
            }
        }
        Step::Deannotate => {
            let (mut claim, _) = pe.claim(range);
            let notes = pe.deannotate(&mut claim);
            reached(if notes.is_empty() { "no notes" } else { "notes removed" });
        }
    }
}

/// Two PEs map, note and unmap; one faults; one looks, as EL2 and as a guest.
pub fn come_and_go() {
    use Step::{Annotate, Deannotate, Map, Unmap};
    let world = World::new(Shape { ipa_bits: 39, ..Shape::small(10, 24) });
    let other = world.spawn(1, &[], |pe| {
        for (what, first, count) in [
            (Map(16), 2, 2),
            (Unmap(2), 512, 512),
            (Annotate, 512, 2),
            (Unmap(1), 2, 2),
            (Deannotate, 512, 512),
            (Map(17), 512, 2),
        ] {
            step(pe, what, first, count);
        }
    });
    let handler = world.spawn(2, &[0, 1, 2, 3, 4, 5, 6, 7], |pe| {
        for number in [0, 513, 1, 514, 3, 0, 512, 2] {
            match pe.install(page(number), Level::L3) {
                Ok(Install::Installed(_)) => reached("installed"),
                Ok(Install::Present(_)) => reached("was present"),
                Err(InstallError::Retry { .. }) => reached("met Busy, Drain or Dead"),
                Err(InstallError::Note { .. }) => reached("met a note"),
                Err(error) => panic!("an install failed: {error:?}"),
            }
        }
    });
    let viewer = world.spawn(3, &[], |pe| {
        for number in PAGES {
            if let Access::Read(..) = pe.world.guest_reads_meanwhile(page(number)) {
                reached("guest read");
            }
            let guard = pe.cpu.enter();
            if let Some(there) = pe.world.space().translate(&guard, page(number)) {
                let content = pe.world.frame(there.pa).load(Ordering::Relaxed);
                assert_ne!(content, SECRET, "a frame serves somebody else under a guard");
                reached("EL2 read");
            }
        }
    });
    world.pe(0, &[], |pe| {
        for (what, first, count) in [
            (Map(18), 0, 2),
            (Unmap(512), 0, 512),
            (Map(19), 0, 2),
            (Unmap(1), 512, 512),
            (Unmap(3), 0, 512),
            (Annotate, 0, 2),
        ] {
            step(pe, what, first, count);
        }
    });
    other.join().unwrap();
    handler.join().unwrap();
    viewer.join().unwrap();
    world.settle();
    world.pe(0, &[], |pe| {
        for number in [0, 1] {
            let _ = pe.unmap_all(table(number), Notes::Remove);
        }
    });
    let last = world.walk(page(0));
    assert_eq!((last.view(), last.level), (View::Empty, Level::L2), "its table went");
    world.settle();
}
