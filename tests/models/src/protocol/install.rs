//! Installs that meet: one winner for each slot, everybody goes on with what the winner put there.

use std::sync::Arc;

use stage2::{Install, InstallError, Level, Pa, Tally};

use crate::guest::Access;
use crate::outcome::reached;
use crate::world::{FILLED, Pe, Shape, World, page};

pub(super) type Result = core::result::Result<Install, InstallError>;

/// What a PE came to: its result, what it did, and the frames that it has left.
pub(super) type Came = (Result, Tally, usize);

pub(super) fn install(pe: &Pe<'_>, number: u64) -> Came {
    let result = pe.install(page(number), Level::L3);
    (result, pe.tally(), pe.at_hand())
}

/// The frame that is mapped, and whether this PE installed it.
fn frame_of(result: Result) -> (Pa, bool) {
    match result {
        Ok(Install::Installed(pa)) => (pa, true),
        Ok(Install::Present(leaf)) => (leaf.pa(), false),
        Err(error) => panic!("an install failed: {error:?}"),
    }
}

/// Exactly one of two PEs installed, and both have the same frame.
pub(super) fn one_winner(a: Came, b: Came) -> Pa {
    let ((mine, i_won), (theirs, they_won)) = (frame_of(a.0), frame_of(b.0));
    assert!(i_won != they_won, "exactly one installs: {a:?} {b:?}");
    assert_eq!(mine, theirs, "both go on with the winner's frame");
    let (winner, loser) = if i_won { (a, b) } else { (b, a) };
    assert_eq!((winner.1.installed, winner.1.lost_races, winner.2), (1, 0, 0));
    assert_eq!((loser.1.installed, loser.2), (0, 1), "the loser has its frame back");
    reached(if loser.1.lost_races == 1 { "lost the exchange" } else { "found it there" });
    mine
}

fn guest(access: Access, expected: Pa) {
    match access {
        Access::Fault => reached("guest faulted"),
        Access::Read(frame, content) => {
            assert_eq!((frame, content), (expected, FILLED));
            reached("guest read");
        }
    }
}

/// Two PEs fault on one page whose table exists, while a third walks.
pub fn one_page() {
    let world = World::new(Shape::small(2, 3));
    let _ = frame_of(world.pe(0, &[2], |pe| install(pe, 1)).0);
    let a = world.spawn(0, &[0], |pe| install(pe, 0));
    let b = world.spawn(1, &[1], |pe| install(pe, 0));
    let access = world.pe(2, &[], |pe| pe.world.guest_reads(page(0)));
    let frame = one_winner(a.join().unwrap(), b.join().unwrap());
    guest(access, frame);
    world.settle();
}

/// Two PEs fault on neighbours whose table does not exist yet, while a third walks.
pub fn neighbours_under_one_missing_table() {
    let world = World::new(Shape::small(3, 2));
    let a = world.spawn(0, &[0], |pe| install(pe, 0));
    let b = world.spawn(1, &[1], |pe| install(pe, 1));
    let access = world.pe(2, &[], |pe| pe.world.guest_reads(page(1)));
    let (a, b) = (a.join().unwrap(), b.join().unwrap());
    assert!(frame_of(a.0).1 && frame_of(b.0).1, "each installs its page: {a:?} {b:?}");
    one_table(a, b, 1);
    guest(access, frame_of(b.0).0);
    world.settle();
}

/// The same with two tables missing, one below the other. `first` and `second` share the upper one, and
/// both if they are neighbours.
fn two_missing_tables(second: u64, shared: u64) {
    let world = World::new(Shape { ipa_bits: 39, ..Shape::small(5, 2) });
    let a = world.spawn(0, &[0], |pe| install(pe, 0));
    let b = world.pe(1, &[1], |pe| install(pe, second));
    let a = a.join().unwrap();
    assert!(frame_of(a.0).1 && frame_of(b.0).1, "each installs its page: {a:?} {b:?}");
    one_table(a, b, shared);
    world.settle();
}

/// Neighbours, with two tables missing above them.
pub fn neighbours_under_two_missing_tables() {
    two_missing_tables(1, 2);
}

/// Pages 2 MiB apart: only the upper one of two missing tables is shared.
pub fn cousins_under_a_missing_table() {
    two_missing_tables(512, 1);
}

/// `shared` tables were linked once each, whoever did, and those that lost came back.
fn one_table(a: Came, b: Came, shared: u64) {
    let depth = |came: Came| came.1.tables + came.1.lost_tables;
    assert!(depth(a) <= 2 && depth(b) <= 2);
    let (linked, lost) = (a.1.tables + b.1.tables, a.1.lost_tables + b.1.lost_tables);
    assert!(linked >= shared && lost <= shared, "{a:?} {b:?}");
    reached(match lost {
        0 => "nobody lost a table",
        1 => "one lost a table",
        _ => "both lost a table",
    });
}

/// One PE installs a block, another a page of the same 2 MiB.
pub fn a_block_and_a_page_of_it() {
    let world = World::new(Shape::small(2, 2));
    let block = world.spawn(0, &[0], |pe| (pe.install(page(0), Level::L2), pe.at_hand()));
    let page = world.pe(1, &[1], |pe| install(pe, 1));
    match (block.join().unwrap(), page) {
        ((Ok(Install::Installed(_)), 0), (Ok(Install::Present(leaf)), _, 1)) => {
            assert_eq!(leaf.level(), Level::L2);
            reached("a block");
        }
        ((Err(InstallError::Occupied { .. }), 1), (Ok(Install::Installed(_)), _, 0)) => {
            reached("a page");
        }
        other => panic!("{other:?}"),
    }
    world.settle();
}

/// Every PE faults on every page of two tables, each in an order of its own, while a guest reads.
pub fn a_crowd() {
    const PAGES: [u64; 4] = [0, 1, 512, 513];
    let world = World::new(Shape { ipa_bits: 39, ..Shape::small(12, 12) });
    let crowd = |world: &Arc<World>| {
        let frames: [&'static [usize]; 3] = [&[0, 1, 2, 3], &[4, 5, 6, 7], &[8, 9, 10, 11]];
        let threads: Vec<_> = (0..3)
            .map(|n| {
                world.spawn(n, frames[n], move |pe| {
                    let order = (0..4).map(|i| PAGES[(i * (n % 2 * 2 + 1) + n) % 4]);
                    order.for_each(|page| _ = frame_of(install(pe, page).0));
                    (pe.tally(), pe.at_hand())
                })
            })
            .collect();
        let reads = world.pe(3, &[], |pe| PAGES.map(|number| pe.world.guest_reads(page(number))));
        (threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>(), reads)
    };
    let (came, reads) = crowd(&world);
    let sum = |of: fn(&Tally) -> u64| came.iter().map(|(tally, _)| of(tally)).sum::<u64>();
    assert_eq!(sum(|tally| tally.installed), 4, "each page has one winner");
    assert_eq!(sum(|tally| tally.tables), 3, "each table has one winner");
    assert_eq!(came.iter().map(|(_, at_hand)| at_hand).sum::<usize>(), 12 - 4);
    if sum(|tally| tally.lost_tables) > 0 {
        reached("tables were lost");
    }
    if sum(|tally| tally.lost_races) > 0 {
        reached("frames were lost");
    }
    if reads.iter().any(|read| *read != Access::Fault) {
        reached("guest read");
    }
    world.settle();
}
