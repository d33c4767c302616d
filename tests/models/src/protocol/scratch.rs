//! Scratch pages: shown by whoever comes first, taken away under everybody's eyes, and never where they are not meant to be.

use std::sync::Arc;

use stage2::space::{Batch, Notes, Progress, Replaced, Replacements};
use stage2::{Descriptor, Install, InstallError, Ipa, IpaRange, Level, Owner, PAGE_SIZE, Pa, View};

use super::clear::populate;
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{Freed, pages, table};
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::world::{FILLED, PATTERN, Pe, Shape, World, page};

/// What somebody writes.
const WRITTEN: u64 = 0xbeef;

/// How a wild access was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// It has shown the scratch page.
    Shown,
    /// The scratch page was there.
    Scratch,
    /// Memory was there.
    Memory(Pa),
    /// A slot on its way.
    Retry,
}

fn reach(pe: &Pe<'_>, number: u64) -> Met {
    let scratch = pe.world.scratch();
    match pe.reach(page(number)) {
        Ok(Install::Installed(pa)) => {
            assert_eq!(pa, scratch.pa());
            Met::Shown
        }
        Ok(Install::Present(leaf)) if scratch.is_behind(&leaf) => Met::Scratch,
        Ok(Install::Present(leaf)) => Met::Memory(leaf.pa()),
        Err(InstallError::Retry { .. }) => Met::Retry,
        Err(error) => panic!("a wild access: {error:?}"),
    }
}

/// Whether the scratch page is shown.
fn is_shown(world: &World, number: u64) -> bool {
    let found = world.walk(page(number));
    found.seen.as_leaf(found.level).is_some_and(|leaf| world.scratch().is_behind(&leaf))
}

/// Several PEs reach for one hole: one shows the page, the others find it.
fn crowd<const OTHERS: usize>(world: &Arc<World>) {
    let others: [_; OTHERS] =
        core::array::from_fn(|n| world.spawn(n + 1, &[], |pe| (reach(pe, 0), pe.tally())));
    let mine = world.pe(0, &[], |pe| (reach(pe, 0), pe.tally()));
    let came: Vec<_> =
        others.into_iter().map(|pe| pe.join().unwrap()).chain(core::iter::once(mine)).collect();
    let of = |met| came.iter().filter(|(came, _)| *came == met).count();
    assert_eq!((of(Met::Shown), of(Met::Scratch)), (1, OTHERS), "one shows it: {came:?}");
    let sum = |of: fn(&stage2::Tally) -> u64| came.iter().map(|(_, tally)| of(tally)).sum::<u64>();
    assert_eq!(sum(|t| t.installed), 0, "it is not the VM's");
    if sum(|t| t.lost_tables) > 0 {
        reached("a table was lost");
    }
    reached(if mine.0 == Met::Shown { "won" } else { "found it there" });
    assert!(is_shown(world, 0));
    world.settle();
}

/// Four PEs, and the table is there.
pub fn four_in_one_hole() {
    let world = World::new(Shape::small(2, 1));
    world.pe(0, &[], |pe| assert_eq!(reach(pe, 1), Met::Shown));
    crowd::<3>(&world);
}

/// Two PEs, and the table is missing, too.
pub fn two_in_one_hole_without_a_table() {
    crowd::<1>(&World::new(Shape::small(3, 1)));
}

/// One PE shows the scratch page, another populates: one of them wins, and both go on with what it put there.
pub fn scratch_against_populate() {
    let world = World::new(Shape::small(3, 1));
    let handler = world.spawn(1, &[0], |pe| (pe.install(page(0), Level::L3), pe.at_hand()));
    let met = world.pe(0, &[], |pe| reach(pe, 0));
    let (installed, at_hand) = handler.join().unwrap();
    match (met, installed.expect("a page or scratch")) {
        (Met::Shown, Install::Present(leaf)) => {
            assert!(world.scratch().is_behind(&leaf));
            assert_eq!((at_hand, leaf.owner()), (1, Owner::Other), "the loser has its frame back");
            reached("scratch won");
        }
        (Met::Memory(pa), Install::Installed(frame)) => {
            assert_eq!((pa, at_hand), (frame, 0));
            reached("memory won");
        }
        other => panic!("{other:?}"),
    }
    world.settle();
}

/// One PE gives a table back, in which a page and scratch are, another reaches for a hole in it, twice.
pub fn scratch_against_unmap() {
    let world = World::new(Shape::small(3, 1));
    let frame = world.pe(0, &[0], |pe| {
        assert_eq!(reach(pe, 2), Met::Shown);
        populate(pe, 0)
    });
    let wild = world.spawn(1, &[], |pe| [reach(pe, 1), reach(pe, 1)]);
    let freed = world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    assert_eq!(freed, [(page(0), frame)], "the VM's page comes back, and no other");
    let met = wild.join().unwrap();
    reached(match (met, is_shown(&world, 1)) {
        ([Met::Shown, Met::Scratch], true) => "after",
        ([Met::Shown, Met::Scratch], false) => "before",
        ([Met::Shown, Met::Retry], false) => "before, then met Dead or Drain",
        ([Met::Shown, Met::Shown], true) => "before and after",
        ([Met::Retry, Met::Shown], true) => "met Dead or Drain, then after",
        ([Met::Retry, Met::Retry], false) => "met Dead or Drain",
        other => panic!("{other:?}"),
    });
    world.settle();
}

/// Frames by number.
struct Own<'p, 'w>(&'p Pe<'w>);

// SAFETY: (1, 2) a frame of this PE's, filled; there are no caches.
unsafe impl Replacements for Own<'_, '_> {
    fn take(&mut self, _: Ipa) -> Option<Pa> {
        Some(self.0.take())
    }

    fn give_back(&mut self, ipa: Ipa, _: Pa) {
        panic!("nobody takes scratch away at {ipa} but the claim");
    }
}

/// Puts memory where scratch is.
fn replace(pe: &Pe<'_>, range: IpaRange) -> Replaced {
    let (world, scratch) = (pe.world, pe.world.scratch());
    let mapping = world.space().mapping(Level::L3, world.leaf(), Owner::Vm).expect("a page");
    let (mut claim, _) = pe.claim(range);
    let (all, relax) = (Batch::all_of(&claim), world.patience());
    let done = world
        .space()
        .replace_scratch(&pe.cpu, &mut claim, all, &scratch, &mapping, &mut Own(pe), relax)
        .expect("there is a frame");
    assert!(pe.cpu.is_quiescent(), "a replacement gives back its guards and locks");
    done
}

const ONE: Replaced = Replaced { progress: Progress::Done, replaced: 1, occupied: 0 };

/// A world in which page 0 shows scratch.
fn shown(tables: usize, frames: usize) -> Arc<World> {
    let world = World::new(Shape::small(tables, frames));
    world.pe(0, &[], |pe| assert_eq!(reach(pe, 0), Met::Shown));
    world
}

/// One PE puts memory where scratch is; another looks the address up under a guard, as EL2 does for its guest, and writes:
/// as long as the guard is open, what it found is not replaced by something else, or what it wrote is nowhere.
pub fn a_replacement_against_an_access_of_el2() {
    let world = shown(2, 1);
    let writer = world.spawn(1, &[], |pe| {
        let (guard, space) = (pe.cpu.enter(), pe.world.space());
        let Some(there) = space.translate(&guard, page(0)) else {
            return reached("EL2 found nothing");
        };
        pe.world.frame(there.pa).store(WRITTEN, Ordering::Relaxed);
        let later = space.translate(&guard, page(0)).map(|there| there.pa);
        assert!(later.is_none_or(|pa| pa == there.pa), "another page is there, under a guard");
        let scratch = there.pa == pe.world.scratch().pa();
        reached(if scratch { "EL2 wrote scratch" } else { "EL2 wrote the page" });
    });
    assert_eq!(world.pe(0, &[0], |pe| replace(pe, pages(0, 1))), ONE);
    writer.join().unwrap();
    assert!(!is_shown(&world, 0));
    world.settle();
}

/// One PE puts memory where scratch is, and a guest reads: scratch, or the page with what it holds, or it faults.
pub fn a_replacement_against_a_guest() {
    let world = shown(2, 1);
    let guest = world.thread(|world| match world.guest_reads_meanwhile(page(0)) {
        Access::Fault => reached("guest faulted"),
        Access::Read(pa, content) if pa == world.scratch().pa() => {
            assert_eq!(content, PATTERN);
            reached("guest read scratch");
        }
        Access::Read(_, content) => {
            assert_eq!(content, FILLED);
            reached("guest read the page");
        }
    });
    assert_eq!(world.pe(0, &[0], |pe| replace(pe, pages(0, 1))), ONE);
    guest.join().unwrap();
    world.settle();
}

/// One PE puts memory where scratch is, another faults there, and finds scratch, Drain or the page.
pub fn a_replacement_against_a_fault() {
    let world = shown(2, 2);
    let fault = world.spawn(1, &[1], |pe| {
        reached(match pe.install(page(0), Level::L3) {
            Ok(Install::Present(leaf)) if pe.world.scratch().is_behind(&leaf) => "found scratch",
            Ok(Install::Present(_)) => "found the page",
            Err(InstallError::Retry { .. }) => "met Drain",
            other => panic!("{other:?}"),
        });
        assert_eq!(pe.at_hand(), 1);
    });
    assert_eq!(world.pe(0, &[0], |pe| replace(pe, pages(0, 1))), ONE);
    fault.join().unwrap();
    world.settle();
}

/// A handler: decides by the policy, a word that is 1 where a hole is, and shows scratch under the same guard.
fn handle(pe: &Pe<'_>, policy: &AtomicU64) -> bool {
    let _guard = pe.cpu.enter();
    if policy.load(Ordering::Relaxed) == 0 {
        return false;
    }
    match reach(pe, 0) {
        Met::Shown | Met::Scratch => true,
        other => panic!("{other:?}: the sweep began while a guard was open under the old policy"),
    }
}

/// A hole is taken back: published, waited for, and only then scratch is removed, and memory is mapped. Whoever decided
/// before has his page swept; nobody shows one afterwards.
pub fn a_hole_is_taken_back() {
    let world = World::new(Shape::small(3, 1));
    let policy = Arc::new(AtomicU64::new(1));
    world.pe(0, &[], |pe| assert_eq!(reach(pe, 1), Met::Shown));
    let handler = {
        let policy = Arc::clone(&policy);
        world.spawn(1, &[], move |pe| handle(pe, &policy))
    };
    world.pe(0, &[], |pe| {
        policy.store(0, Ordering::Relaxed);
        pe.cpu.wait(pe.world.patience()).expect("outside a guard");
        let (mut claim, _) = pe.claim(table(0));
        let (all, relax, mut freed) =
            (Batch::all_of(&claim), pe.world.patience(), Freed::new(pe.world));
        let (space, scratch) = (pe.world.space(), pe.world.scratch());
        let done = space.remove_scratch(&pe.cpu, &mut claim, all, &scratch, relax, &mut freed);
        assert_eq!((done, freed.frames), (Ok(Progress::Done), vec![]), "no frame comes back");
        drop(claim);
        let (mut claim, _) = pe.claim(pages(0, 1));
        let pa = pe.world.take_memory(0, PAGE_SIZE);
        let mapped = pe.map(&mut claim, pa, Level::L3);
        assert_eq!(mapped, Ok(Progress::Done), "nothing comes after the sweep");
    });
    let shown = handler.join().unwrap();
    reached(if shown { "shown, then swept" } else { "refused" });
    let View::Leaf(leaf) = world.walk(page(0)).view() else { panic!("memory was mapped") };
    assert_eq!(leaf.owner(), Owner::Vm);
    assert_eq!(world.walk(page(1)).seen, Descriptor::EMPTY);
    world.settle();
}
