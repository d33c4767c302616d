//! The beginning and the end of a dirty session, while somebody who may have found it still marks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::dirty::Maps;
use super::map::extent;
use super::prot::{GIB, MIB2};
use super::unmap::range;
use super::*;
use crate::arch::Locked;
use crate::epoch::Cpu;
use crate::space::{Batch, DirtyError, LogBlocks};

/// Two pages from this one on, by number from 1 GiB on.
fn two(page: u64) -> IpaRange {
    range(GIB + page * PAGE_SIZE, 2 * PAGE_SIZE)
}

/// Starts a session of the bitmaps' range. Nobody may have to be waited for.
fn start(
    space: &Space<'_, &Pages, Host>,
    cpu: &Cpu<'_>,
    maps: &Maps,
    at: IpaRange,
) -> Result<(), DirtyError> {
    let mut claim = space.claim(at).unwrap();
    let nobody = || panic!("a session began while another's end was waited for");
    // SAFETY: (1) the session, or the space, ends before the bitmaps in each test.
    unsafe { space.dirty_start(cpu, &mut claim, &maps.bitmaps(), LogBlocks::Keep, nobody) }
}

/// The other CPU has found the session, and may still mark: meanwhile nobody finds it anew, and no other begins.
#[test]
fn a_session_that_ends_is_hidden_first_and_waited_for_before_another_begins() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let space = space(&pages, &epochs, 40);
    let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
    let (ends, begins) = (Maps::of(two(2)), Maps::of(two(0)));
    start(&space, &cpu, &ends, two(2)).unwrap();
    let mut guard = Some(other.enter());
    let mut waited = 0;
    let mut claim = space.claim(two(2)).unwrap();
    space.dirty_mark(guard.as_ref().unwrap(), range(GIB + 2 * PAGE_SIZE, PAGE_SIZE));
    let stopped = space.dirty_stop(&cpu, &mut claim, 4096, || {
        waited += 1;
        let Some(guard) = guard.take() else { return };
        space.dirty_mark(&guard, range(GIB + 3 * PAGE_SIZE, PAGE_SIZE));
        assert_eq!(ends.take(), [2], "a session that ends is not found any more");
        let begun = start(&space, &cpu, &begins, two(0));
        assert_eq!(begun, Err(DirtyError::Stopping { range: two(2) }), "not before its end");
    });
    assert_eq!(stopped.unwrap().progress, Progress::Done);
    assert!(waited > 0, "whoever had found it was not waited for");
    drop(claim);
    start(&space, &cpu, &begins, two(0)).unwrap();
    space.dirty_mark(&other.enter(), range(GIB, 4 * PAGE_SIZE));
    assert_eq!((begins.take(), ends.take()), (vec![0, 1], vec![]), "the other session's alone");
}

/// A CPU of other epochs would wait for nobody.
#[test]
fn who_cannot_wait_for_markers_neither_starts_nor_stops() {
    let (pages, epochs, others) = (Pages::new(usize::MAX), Epochs::<1>::new(), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let (cpu, stranger) = (epochs.join(0).unwrap(), others.join(0).unwrap());
    let maps = Maps::of(two(0));
    assert_eq!(start(&space, &stranger, &maps, two(0)), Err(DirtyError::ForeignCpu));
    assert_eq!(space.dirty_range(), None);
    start(&space, &cpu, &maps, two(0)).unwrap();
    let mut claim = space.claim(two(0)).unwrap();
    let mut stop = |cpu| space.dirty_stop(cpu, &mut claim, 4096, || ()).map(|done| done.progress);
    assert_eq!(stop(&stranger), Err(DirtyError::ForeignCpu));
    assert_eq!(space.dirty_range(), Some(two(0)), "nothing has changed");
    assert_eq!(stop(&cpu), Ok(Progress::Done));
}

/// Whoever marks is waited for by a loop of the caller's, which may never come back.
#[test]
fn a_stop_that_was_left_while_it_waited_is_ended_by_another() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let space = space(&pages, &epochs, 40);
    let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
    let (maps, others) = (Maps::of(two(2)), Maps::of(two(0)));
    start(&space, &cpu, &maps, two(2)).unwrap();
    let guard = other.enter();
    let mut claim = space.claim(two(2)).unwrap();
    let mut stop = |relax: &mut dyn FnMut()| space.dirty_stop(&cpu, &mut claim, 4096, relax);
    let left = catch_unwind(AssertUnwindSafe(|| stop(&mut || panic!("tired of waiting"))));
    assert!(left.is_err(), "the other CPU was not waited for");
    drop(guard);
    assert_eq!(space.dirty_range(), None);
    let begun = start(&space, &cpu, &others, two(0));
    assert_eq!(begun, Err(DirtyError::Stopping { range: two(2) }), "it has not ended");
    assert_eq!(stop(&mut || ()).map(|stopped| stopped.progress), Ok(Progress::Done));
    start(&space, &cpu, &others, two(0)).unwrap();
}

/// Of the guards for which a stop waits twice, first to make a block again, then to end.
#[test]
fn a_stop_ends_nothing_while_its_own_cpu_is_inside_a_guard() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let space = space(&pages, &epochs, 40);
    let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
    let at = range(GIB, MIB2);
    let (maps, mut claim) = (Maps::of(at), space.claim(at).unwrap());
    let all = Batch::all_of(&claim);
    // SAFETY: (1, 2) no guest runs on the host.
    let _ = unsafe { space.map(&cpu, &mut claim, all, &extent(7 * GIB, Level::L2)) }.unwrap();
    let bitmaps = maps.bitmaps();
    // SAFETY: (1) the session ends below, before the bitmaps.
    unsafe { space.dirty_start(&cpu, &mut claim, &bitmaps, LogBlocks::Split, || ()) }.unwrap();
    assert_eq!(space.dirty_harvest(&cpu, &mut claim, all).unwrap().progress, Progress::Done);
    assert_eq!(maps.take().len(), 512);
    let (mut guard, mut own) = (Some(other.enter()), None);
    let stopped = space.dirty_stop(&cpu, &mut claim, 4096, || {
        own.get_or_insert_with(|| cpu.enter());
        drop(guard.take());
    });
    assert_eq!(stopped, Err(DirtyError::NotQuiescent));
    assert!(own.take().is_some(), "a block that is made again waits for guards");
    // SAFETY: (1) as above.
    let again = unsafe { space.dirty_start(&cpu, &mut claim, &bitmaps, LogBlocks::Split, || ()) };
    assert_eq!(again, Err(DirtyError::Stopping { range: at }), "it has not ended");
    let stopped = space.dirty_stop(&cpu, &mut claim, 4096, || ());
    assert_eq!(stopped.unwrap().progress, Progress::Done);
}

/// Nobody would wait for its holder: so the session's lock keeps the bitmap where it is.
#[test]
fn a_mark_under_a_guard_of_other_epochs_is_made_under_the_lock() {
    let (pages, epochs, others) = (Pages::new(usize::MAX), Epochs::<2>::new(), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
    let stranger = others.join(0).unwrap();
    let (maps, all) = (Maps::of(two(2)), range(GIB, 8 * PAGE_SIZE));
    let mark = || {
        space.dirty_mark(&stranger.enter(), all);
        (maps.take(), space.arch.take_asked())
    };
    assert_eq!(mark().0, [], "there is no session");
    start(&space, &cpu, &maps, two(2)).unwrap();
    let _ = space.arch.take_asked();
    assert_eq!(mark(), (vec![2, 3], vec![Locked::Session]), "a mark is lost");
    let mut guard = Some(other.enter());
    let mut claim = space.claim(two(2)).unwrap();
    let stopped = space.dirty_stop(&cpu, &mut claim, 4096, || {
        if guard.take().is_some() {
            assert_eq!(mark().0, [2, 3], "it has not ended");
        }
    });
    assert_eq!((stopped.unwrap().progress, guard.is_none()), (Progress::Done, true));
    assert_eq!(mark().0, [], "a bit in a bitmap that is the caller's again");
}
