//! The beginning and the end of a dirty session, while somebody who may have found it still marks.

use super::dirty::Maps;
use super::prot::GIB;
use super::unmap::range;
use super::*;
use crate::epoch::Cpu;
use crate::space::{DirtyError, LogBlocks};

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
