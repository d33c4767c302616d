//! What an operation must leave alone: other claims, and what lies before its batch.

use std::time::Duration;

use super::map::{extent, map};
use super::unmap::{Released, Vm, range};
use super::*;
use crate::space::{Batch, MapError, Notes, Progress};

const BLOCK: u64 = 2 << 20;

/// The range begins inside a slot, and nothing of it can be prepared.
#[test]
fn a_map_that_is_refused_at_once_leaves_the_slot_it_begins_in() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let mut claim = vm.space.claim(range(0x4000, 0x1000)).unwrap();
    let batch = Batch::all_of(&claim);
    let mut refused = |seen| {
        vm.put(0, seen);
        // SAFETY: (1, 2) no guest runs on the host.
        let result = unsafe { vm.space.map(&vm.cpu, &mut claim, batch, &extent(0, Level::L1)) };
        assert!(result.is_err());
        assert_eq!(vm.slot(0).load(&vm.space.arch), seen, "{result:?}");
        vm.put(0, Descriptor::EMPTY);
    };
    // A GiB that somebody has noted.
    refused(Descriptor::note(Note::new(7).unwrap()));
    // A table that another operation, which claimed other pages of the GiB, is about to link.
    let table = Memory::alloc_table(&&pages, 1).unwrap();
    refused(Descriptor::table(Level::L1, table).unwrap().to_busy().unwrap());
    assert!(!pages.freed.lock().unwrap().contains(&table), "it is another's");
}

/// Whoever goes on in the middle of a range has done what lies before, or wants it to stay.
#[test]
fn a_batch_takes_nothing_from_before_its_beginning() {
    for kept in [false, true] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let mut vm = Vm::new(&pages, &epochs);
        let before = vm.map(0x1000, Level::L3, Owner::Vm);
        let after = vm.map(0x9000, Level::L3, Owner::Vm);
        if kept {
            vm.put(0xa000, Descriptor::note(Note::new(1).unwrap()));
        }
        let mut claim = vm.space.claim(range(0, BLOCK)).unwrap();
        let mut released = Released::default();
        let batch = Batch { from: Ipa::new(0x8000), slots: usize::MAX };
        let done = vm.space.unmap(&vm.cpu, &mut claim, batch, Notes::Keep, || {}, &mut released);
        assert_eq!(done, Ok(Progress::Done));
        assert_eq!(released.0, [(0x9000, (after, 4096))].into());
        let guard = vm.cpu.enter();
        let stays = vm.space.translate(&guard, Ipa::new(0x1000)).map(|at| at.pa.get());
        assert_eq!(stays, Some(before), "a note behind it: {kept}");
    }
}

/// Two ranges meet in the middle of what is one Empty slot of level 2 at first.
#[test]
fn neighbours_in_one_slot_do_not_disturb_each_other() {
    const ROUNDS: usize = 40;
    const BYTES: u64 = 3 * BLOCK;
    let (epochs, retries) = (Epochs::<2>::new(), AtomicUsize::new(0));
    for round in 0..ROUNDS {
        // Nothing is reused, not even what a map that is repeated gave back.
        let mut pages = Pages::new(usize::MAX);
        pages.yields = true;
        let space = space(&pages, &epochs, 39);
        map(&space, &epochs, range(1 << 29, 0x1000), &extent(0, PAGE), 1).unwrap();
        std::thread::scope(|scope| {
            for side in 0..2 {
                let (space, epochs, retries) = (&space, &epochs, &retries);
                scope.spawn(move || {
                    let cpu = epochs.join(side as usize).unwrap();
                    let mine = range(BLOCK / 2 + side * BYTES, BYTES);
                    let mut claim = space.claim(mine).unwrap();
                    let (all, to) = (Batch::all_of(&claim), extent(side << 32, PAGE));
                    let unmap = |claim: &mut _| {
                        let mut released = Released::default();
                        let relax = std::thread::yield_now;
                        let done = space.unmap(&cpu, claim, all, Notes::Keep, relax, &mut released);
                        done.map(|done| (done, released.0.len()))
                    };
                    let none = unmap(&mut claim);
                    assert_eq!(none, Ok((Progress::Done, 0)), "whatever the neighbour does");
                    let mapped = loop {
                        // SAFETY: (1, 2) no guest runs on the host.
                        match unsafe { space.map(&cpu, &mut claim, all, &to) } {
                            Err(MapError::Retry { .. }) => retries.fetch_add(1, Ordering::Relaxed),
                            result => break result,
                        };
                        std::thread::sleep(Duration::from_micros(50));
                    };
                    assert_eq!(mapped, Ok(Progress::Done));
                    let each = unmap(&mut claim);
                    assert_eq!(each, Ok((Progress::Done, 3 * 512)), "in round {round}");
                });
            }
        });
        let cpu = epochs.join(0).unwrap();
        // SAFETY: (1) no guest runs on the host.
        unsafe { space.destroy(&cpu, || {}, &mut Released::default()) }.unwrap();
        assert_eq!(pages.live(), 0);
    }
    println!("{} maps were repeated", retries.into_inner());
}

/// The same, step by step: a slot that a neighbour's map is about to fill.
#[test]
fn a_neighbours_half_filled_slot_is_nothing_to_unmap_and_a_reason_to_repeat_a_map() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let table = Memory::alloc_table(&&pages, 1).unwrap();
    let busy = Descriptor::table(Level::L1, table).unwrap().to_busy().unwrap();
    vm.put(0, busy);
    let mut claim = vm.space.claim(range(0x4000, 0x1000)).unwrap();
    let batch = Batch::all_of(&claim);
    let mut released = Released::default();
    let done = vm.space.unmap(&vm.cpu, &mut claim, batch, Notes::Remove, || {}, &mut released);
    assert_eq!(done, Ok(Progress::Done));
    let gone = vm.space.deannotate(&vm.cpu, &mut claim, batch, |_, _, _| panic!("no note"));
    assert_eq!(gone, Ok(Progress::Done));
    // SAFETY: (1, 2) no guest runs on the host.
    let mapped = unsafe { vm.space.map(&vm.cpu, &mut claim, batch, &extent(0, Level::L1)) };
    let retry = MapError::Retry { ipa: Ipa::new(0x4000), level: Level::L1, seen: busy };
    assert_eq!(mapped, Err(retry));
    assert_eq!(vm.slot(0).load(&vm.space.arch), busy);
}

/// The budget is of slots; only a table of pages is filled whole.
#[test]
fn a_map_of_a_gib_of_pages_stops_at_its_budget() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let mut claim = vm.space.claim(range(0, 1 << 30)).unwrap();
    for (slots, until) in [(1, BLOCK), (513, 3 * BLOCK)] {
        let batch =
            Batch { from: Ipa::new(until - if slots == 1 { BLOCK } else { 2 * BLOCK }), slots };
        // SAFETY: (1, 2) no guest runs on the host.
        let done = unsafe { vm.space.map(&vm.cpu, &mut claim, batch, &extent(0, PAGE)) };
        assert_eq!(done, Ok(Progress::Until(Ipa::new(until))));
    }
}
