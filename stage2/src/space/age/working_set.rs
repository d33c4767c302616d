//! How many pages a VM works with, from what passes of [`age`](crate::Space::age) have found.
//!
//! The working set at a time is what was accessed in the interval before it (Denning 1968): one pass gives one number. One
//! number jumps, so three are kept, as C. A. Waldspurger does for memory that is taken from VMs ("Memory Resource Management in
//! VMware ESX Server", OSDI 2002, section 5.3): an average that follows slowly, one that follows fast, and the last pass. The
//! estimate is the largest of them: it rises at once, when a VM begins to work, and falls slowly, when it rests.

use super::Aged;

/// Bits behind the point of an average.
const FRACTION: u32 = 8;
/// An average moves by this part of the distance, as a power of two, with each pass.
const SLOW: u32 = 3;
const FAST: u32 = 1;

/// An estimate of a VM's working set, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// Accessed pages of the pass under way.
    sum: u64,
    /// The last pass, and the averages, which have [`FRACTION`] bits; nothing before the first pass ends.
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    last: u64,
    slow: u64,
    fast: u64,
}

impl WorkingSet {
    /// None is known yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { sum: 0, seen: None }
    }

    /// A batch of a pass has been aged.
    pub const fn batch(&mut self, aged: &Aged) {
        self.sum = self.sum.saturating_add(aged.accessed);
    }

    /// The pass is over. Passes are to follow each other at equal intervals: that is the time in which an access counts.
    pub fn pass(&mut self) {
        let last = core::mem::take(&mut self.sum).min(u64::MAX >> FRACTION);
        let now = last << FRACTION;
        let Seen { slow, fast, .. } = self.seen.unwrap_or(Seen { last, slow: now, fast: now });
        self.seen = Some(Seen { last, slow: moved(slow, now, SLOW), fast: moved(fast, now, FAST) });
    }

    /// Pages that the VM works with, if a pass has ended.
    #[must_use]
    pub fn pages(&self) -> Option<u64> {
        let Seen { last, slow, fast } = self.seen?;
        Some(last.max(slow.max(fast).div_ceil(1 << FRACTION)))
    }
}

/// A part of the way from `from` to `to`.
const fn moved(from: u64, to: u64, part: u32) -> u64 {
    if to >= from { from + ((to - from) >> part) } else { from - (from - to).div_ceil(1 << part) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Progress;

    fn pass(set: &mut WorkingSet, accessed: u64) -> u64 {
        // In two batches.
        for accessed in [accessed / 3, accessed - accessed / 3] {
            set.batch(&Aged { progress: Progress::Done, accessed, idle: 0 });
        }
        set.pass();
        set.pages().unwrap()
    }

    #[test]
    fn nothing_is_known_before_the_first_pass_has_ended() {
        let mut set = WorkingSet::new();
        assert_eq!(set.pages(), None);
        set.batch(&Aged { progress: Progress::Done, accessed: 5, idle: 0 });
        assert_eq!(set.pages(), None);
        set.pass();
        assert_eq!(set.pages(), Some(5));
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly_to_what_the_vm_works_with() {
        let mut set = WorkingSet::new();
        assert_eq!(pass(&mut set, 100), 100);
        assert_eq!(pass(&mut set, 1000), 1000, "at once");
        assert!(pass(&mut set, 40) > 200, "it falls slowly");
        let mut before = 1000;
        for _ in 0..100 {
            let now = pass(&mut set, 40);
            assert!((40..=before).contains(&now), "{now} after {before}");
            before = now;
        }
        assert_eq!(before, 40, "in the end");
    }

    #[test]
    fn a_single_pass_at_rest_takes_an_eighth_at_the_most() {
        let mut set = WorkingSet::new();
        (0..50).for_each(|_| {
            pass(&mut set, 800);
        });
        let now = pass(&mut set, 0);
        assert!((700..800).contains(&now), "{now}");
    }

    #[test]
    fn numbers_without_measure_do_not_overflow() {
        let mut set = WorkingSet::new();
        assert!(pass(&mut set, u64::MAX) >= u64::MAX >> FRACTION);
        assert!(pass(&mut set, 0) > 0);
    }
}
