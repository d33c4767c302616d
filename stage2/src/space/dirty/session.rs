//! The session of a VM: what it covers, its bitmaps, and who finds it.

use core::ptr;

use super::DirtyError;
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE};
use crate::arch::{Arch, Locked};
use crate::epoch::Guard;
use crate::sync::{AtomicU64, Lock, LockGuard, Ordering};

/// Bytes of what a bit of the bitmap of spans stands for.
pub(super) const SPAN: u64 = Level::L2.slot_bytes();
const BITS: u64 = u64::BITS as u64;

/// Where a session keeps what it finds. The caller takes bits of pages out; the others are the session's.
#[derive(Clone, Copy, Debug)]
pub struct Bitmaps<'b> {
    /// A bit for each page of 4 KiB of the range, the lowest first: its content may have changed since the bit was taken
    /// out last. Taken by [`swap`](AtomicU64::swap) with acquire order, *before* the page is read.
    pub pages: &'b [AtomicU64],
    /// Two bits for each 2 MiB, aligned, that the range has a part of; all zero in the beginning. First all bits that say
    /// where logging has split blocks, then, from a new word on, all that say where a harvest has been.
    pub spans: &'b [AtomicU64],
}

impl Bitmaps<'_> {
    /// How many words the bitmaps of a range have: of pages, and of spans.
    #[must_use]
    pub const fn words(range: IpaRange) -> [usize; 2] {
        let spans = spans(&range).div_ceil(BITS);
        [range.pages().div_ceil(BITS) as usize, 2 * spans as usize]
    }
}

/// Spans that a range has a part of.
const fn spans(range: &IpaRange) -> u64 {
    range.end().get().div_ceil(SPAN) - range.start().get() / SPAN
}

/// What a session does about blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBlocks {
    /// A harvest splits those that it comes to into pages, as long as there are tables; stop collapses them again.
    Split,
    /// They stay: all of a block is dirty together.
    Keep,
}

/// The session of a VM, as an operation finds it.
#[derive(Clone, Copy, Debug)]
pub(in crate::space) struct Session {
    pub(super) range: IpaRange,
    pages: &'static [AtomicU64],
    split: &'static [AtomicU64],
    seen: &'static [AtomicU64],
    pub(super) blocks: LogBlocks,
    /// Where a stop has come to.
    pub(super) stopped: Option<Ipa>,
}

/// One session, or none.
#[derive(Debug)]
pub(in crate::space) struct Log {
    /// What the session covers; an end of 0 if there is none, or one that is hidden. Looked at before the lock is taken. Written under the claim on all
    /// of that, so who has a claim there sees it as it is, and others, who may see the half of it, ask again under the
    /// lock. Who has no claim has a guard, and sees one session or none without the lock: between the end of one, which is
    /// hidden first, and the next one's start lies a grace period.
    start: AtomicU64,
    end: AtomicU64,
    /// Where the session's bitmap of pages is: of as many words as its range says. An exposed address, so that the model checkers
    /// see it, too.
    pages: AtomicU64,
    /// Everything before this was harvested once. Written by the one whose claim it lies in.
    harvested: AtomicU64,
    session: Lock<Option<Session>>,
}

impl Session {
    /// # Safety
    /// 1. The bitmaps outlive the session.
    pub(super) unsafe fn new(
        range: IpaRange,
        bitmaps: &Bitmaps<'_>,
        blocks: LogBlocks,
    ) -> Result<Self, DirtyError> {
        let [pages, spans] = Bitmaps::words(range);
        let Bitmaps { pages: of_pages, spans: of_spans } = *bitmaps;
        if of_pages.len() != pages {
            return Err(DirtyError::PageWords { words: of_pages.len(), wanted: pages });
        }
        if of_spans.len() != spans {
            return Err(DirtyError::SpanWords { words: of_spans.len(), wanted: spans });
        }
        // SAFETY: (1) the caller's clause: for as long as anybody looks at them they are there.
        let lasting = |words: &[AtomicU64]| unsafe {
            core::slice::from_raw_parts(words.as_ptr(), words.len())
        };
        // What another session knew of these spans is nothing to this one.
        of_spans.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let (split, seen) = of_spans.split_at(spans / 2);
        let (pages, split, seen) = (lasting(of_pages), lasting(split), lasting(seen));
        Ok(Self { range, pages, split, seen, blocks, stopped: None })
    }

    /// Sets the bits of the pages of a range, as far as the session covers it.
    pub(in crate::space) fn mark(&self, range: IpaRange) {
        mark(self.pages, self.range, range);
    }

    /// Sets the bits of the pages of a leaf.
    pub(in crate::space) fn mark_leaf(&self, ipa: Ipa, level: Level) {
        if let Ok(leaf) = IpaRange::new(ipa, level.slot_bytes()) {
            self.mark(leaf);
        }
    }

    /// Sets the bits of the pages of leaves: bit n of `slots` is the leaf n slots of `level` behind `first`.
    pub(super) fn mark_slots(&self, first: Ipa, level: Level, slots: u64) {
        if level == Level::L3 {
            return self.mark_pages(first, slots);
        }
        let bytes = level.slot_bytes();
        for slot in (0..BITS).filter(|slot| slots >> slot & 1 != 0) {
            self.mark_leaf(Ipa::new(first.get() + slot * bytes), level);
        }
    }

    /// The same for pages, of which only those in a range count.
    pub(super) fn mark_pages_in(&self, range: IpaRange, first: Ipa, slots: u64) {
        let from = range.start().get().saturating_sub(first.get()) / PAGE_SIZE;
        let end = range.end().get().saturating_sub(first.get()) / PAGE_SIZE;
        let below = |count: u64| 1_u64.checked_shl(count as u32).unwrap_or(0).wrapping_sub(1);
        self.mark_pages(first, slots & below(end.min(BITS)) & !below(from.min(BITS)));
    }

    /// At most two words, wherever the session begins. All of the pages lie in its range.
    fn mark_pages(&self, first: Ipa, slots: u64) {
        let (first, start) = (first.get() / PAGE_SIZE, self.range.start().get() / PAGE_SIZE);
        let Some(page) = first.checked_sub(start) else {
            return or(self.pages, 0, slots.checked_shr((start - first) as u32).unwrap_or(0));
        };
        let shift = page % BITS;
        or(self.pages, page / BITS, slots << shift);
        if shift != 0 {
            or(self.pages, page / BITS + 1, slots >> (BITS - shift));
        }
    }

    /// Logging has split the blocks of a span.
    pub(super) fn note_split(&self, ipa: Ipa) {
        let span = self.span(ipa);
        set(self.split, span, span + 1);
    }

    /// Whether it had; from now on it has not.
    pub(super) fn take_split(&self, ipa: Ipa) -> bool {
        let (word, bit) = (self.span(ipa) / BITS, 1 << (self.span(ipa) % BITS));
        // The session's own, under the claim: nothing is published by it.
        self.split
            .get(word as usize)
            .is_some_and(|word| word.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }

    /// A harvest has been through all of a span.
    pub(super) fn note_seen(&self, ipa: Ipa) {
        let span = self.span(ipa);
        set(self.seen, span, span + 1);
    }

    /// Whether one has.
    pub(super) fn is_seen(&self, ipa: Ipa) -> bool {
        let (word, bit) = (self.span(ipa) / BITS, 1 << (self.span(ipa) % BITS));
        self.seen.get(word as usize).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// The number of the span in which an address of the range is.
    const fn span(&self, ipa: Ipa) -> u64 {
        (ipa.get() / SPAN).saturating_sub(self.range.start().get() / SPAN)
    }
}

/// Sets the bits of the pages of a range, as far as it lies in that of the session, whose bitmap this is.
fn mark(pages: &[AtomicU64], session: IpaRange, range: IpaRange) {
    let start = session.start().get();
    let from = range.start().get().max(start) - start;
    let end = range.end().min(session.end()).get().saturating_sub(start);
    set(pages, from / PAGE_SIZE, end / PAGE_SIZE);
}

/// Sets bits of a word. What happened before is seen by who takes them out.
fn or(words: &[AtomicU64], index: u64, bits: u64) {
    if bits != 0
        && let Some(word) = words.get(index as usize)
    {
        word.fetch_or(bits, Ordering::Release);
    }
}

/// Sets the bits from one to before another.
fn set(words: &[AtomicU64], from: u64, end: u64) {
    let mut at = from;
    while at < end {
        let next = (at / BITS + 1) * BITS;
        let count = next.min(end) - at;
        or(words, at / BITS, u64::MAX >> (BITS - count) << (at % BITS));
        at += count;
    }
}

impl Log {
    pub(in crate::space) fn new() -> Self {
        let [start, end, pages, harvested] = [(); 4].map(|()| AtomicU64::new(0));
        Self { start, end, pages, harvested, session: Lock::new(None) }
    }

    /// From now on there is this session.
    pub(super) fn publish<A: Arch>(&self, arch: &A, session: Session) -> Result<(), DirtyError> {
        let mut held = self.lock(arch);
        if let Some(other) = *held {
            return Err(match other.stopped {
                None => DirtyError::Running { range: other.range },
                Some(_) => DirtyError::Stopping { range: other.range },
            });
        }
        *held = Some(session);
        let (start, end) = (session.range.start().get(), session.range.end().get());
        self.harvested.store(start, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        let pages = session.pages.as_ptr().expose_provenance();
        self.pages.store(pages as u64, Ordering::Relaxed);
        self.end.store(end, Ordering::Release);
        Ok(())
    }

    fn lock<A: Arch>(&self, arch: &A) -> LockGuard<'_, Option<Session>> {
        arch.about_to_lock(Locked::Session);
        self.session.lock()
    }

    /// The session, running or being stopped, also one that is [hidden](Self::hide).
    pub(super) fn held<A: Arch>(&self, arch: &A) -> Option<Session> {
        *self.lock(arch)
    }

    /// The session, running or being stopped.
    pub(super) fn any<A: Arch>(&self, arch: &A) -> Option<Session> {
        if self.end.load(Ordering::Acquire) == 0 { None } else { self.held(arch) }
    }

    /// Sets the bits of the pages of a range, as far as the session covers it, for who has no claim. Takes no lock.
    ///
    /// # Safety
    /// 1. The guard is of the epochs for which whoever stops the session waits.
    pub(super) unsafe fn mark(&self, _guard: &Guard<'_>, range: IpaRange) {
        let end = self.end.load(Ordering::Acquire);
        let start = Ipa::new(self.start.load(Ordering::Relaxed));
        let bytes = end.saturating_sub(start.get());
        let Ok(session) = IpaRange::new(start, bytes) else { return };
        let [words, _] = Bitmaps::words(session);
        let first =
            ptr::with_exposed_provenance::<AtomicU64>(self.pages.load(Ordering::Relaxed) as usize);
        // SAFETY: (1) `end` was published with the rest of its session, which nothing replaces before the guard ends, by the
        // caller's clause; and the bitmap, which has so many words, lasts until who stops it has waited for the guard.
        let pages = unsafe { core::slice::from_raw_parts(first, words) };
        mark(pages, session, range);
    }

    /// Likewise, for who has neither a claim nor a guard that is waited for: under the lock, without which no session ends.
    pub(super) fn mark_locked<A: Arch>(&self, arch: &A, range: IpaRange) {
        if let Some(session) = *self.lock(arch) {
            session.mark(range);
        }
    }

    /// The session, if it is to be harvested.
    pub(super) fn running<A: Arch>(&self, arch: &A) -> Result<Session, DirtyError> {
        let session = self.any(arch).ok_or(DirtyError::NoSession)?;
        match session.stopped {
            None => Ok(session),
            Some(_) => Err(DirtyError::Stopping { range: session.range }),
        }
    }

    /// The session that covers a part of a range, running or being stopped.
    pub(in crate::space) fn covering<A: Arch>(&self, arch: &A, range: IpaRange) -> Option<Session> {
        if !self.may_cover(range) {
            return None;
        }
        self.any(arch).filter(|session| session.range.overlaps(&range))
    }

    /// Whether the session covers a part of a range on which the caller has a claim. Of another range it may say so of one
    /// that begins or ends just now.
    pub(super) fn may_cover(&self, range: IpaRange) -> bool {
        let end = self.end.load(Ordering::Acquire);
        range.start().get() < end && self.start.load(Ordering::Relaxed) < range.end().get()
    }

    /// A harvest has come from one address to another. Returns before which address everything had been harvested already.
    pub(super) fn harvested(&self, from: Ipa, until: Ipa) -> Ipa {
        let before = Ipa::new(self.harvested.load(Ordering::Relaxed));
        // Then it lies in the caller's claim, or nothing changes.
        if from <= before && before < until {
            self.harvested.store(until.get(), Ordering::Relaxed);
        }
        before
    }

    /// A stop has come so far.
    pub(super) fn stopped_until<A: Arch>(&self, arch: &A, ipa: Ipa) {
        if let Some(session) = self.lock(arch).as_mut() {
            session.stopped = Some(ipa);
        }
    }

    /// Nobody finds it any more, and no other begins.
    pub(super) fn hide(&self) {
        self.end.store(0, Ordering::Release);
    }

    /// There is none any more, a grace period after it was [hidden](Self::hide).
    pub(super) fn end<A: Arch>(&self, arch: &A) {
        *self.lock(arch) = None;
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn range(page: u64, pages: u64) -> IpaRange {
        IpaRange::new(Ipa::new(page * PAGE_SIZE), pages * PAGE_SIZE).unwrap()
    }

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    /// The pages whose bits are set.
    fn taken(words: &[AtomicU64], start: u64) -> Vec<u64> {
        let bits = |(index, word): (usize, &AtomicU64)| {
            let word = word.swap(0, Ordering::Acquire);
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| index as u64 * 64 + bit)
        };
        words.iter().enumerate().flat_map(bits).map(|page| start + page).collect()
    }

    #[test]
    fn the_pages_of_a_range_or_group_get_their_bits_wherever_the_session_begins() {
        for start in [0_u64, 64, 1, 63, 100, 512 * 7 + 5] {
            let all = range(start, 300);
            let [pages, spans] = Bitmaps::words(all);
            let (pages, spans) = (words(pages), words(spans));
            let bitmaps = Bitmaps { pages: &pages, spans: &spans };
            // SAFETY: (1) they are dropped after it.
            let session = unsafe { Session::new(all, &bitmaps, LogBlocks::Keep) }.unwrap();
            for (first, count) in [(0, 1), (0, 300), (63, 2), (7, 130), (299, 1)] {
                session.mark(range(start + first, count));
                let wanted: Vec<_> = (start + first..start + first + count).collect();
                assert_eq!(taken(&pages, start), wanted, "{start}: {first}, {count}");
            }
            // Beyond its edges there is nothing.
            session.mark(range(0, 1 << 20));
            assert_eq!(taken(&pages, start).len(), 300);
            session.mark(range(start + 300, 5));
            assert_eq!(taken(&pages, start), []);
            for page in start..start + 300 {
                let group = page / 64 * 64;
                session.mark_slots(Ipa::new(group * PAGE_SIZE), Level::L3, 1 << (page - group));
                assert_eq!(taken(&pages, start), [page], "from {start}");
            }
        }
    }

    #[test]
    fn a_dirty_block_is_all_of_its_pages() {
        let all = range(512 * 3 + 256, 2048);
        let [pages, spans] = Bitmaps::words(all);
        assert_eq!((pages, spans), (32, 2));
        let (pages, spans) = (words(pages), words(spans));
        let bitmaps = Bitmaps { pages: &pages, spans: &spans };
        // SAFETY: (1) they are dropped after it.
        let session = unsafe { Session::new(all, &bitmaps, LogBlocks::Keep) }.unwrap();
        session.mark_slots(Ipa::new(0), Level::L2, 1 << 5);
        let wanted: Vec<_> = (512 * 5..512 * 6).collect();
        assert_eq!(taken(&pages, 512 * 3 + 256), wanted);
        let at = |span: u64| Ipa::new(span * SPAN);
        session.note_split(at(4));
        session.note_seen(at(7));
        assert!(!session.take_split(at(7)) && session.take_split(at(4)));
        assert!(!session.take_split(at(4)), "once");
        assert!(session.is_seen(at(7)) && !session.is_seen(at(4)));
    }
}
