//! A ring of records with one producer that never waits, and one consumer.
//!
//! ```text
//!            tail                     head
//!  ┌────┬────┬────┬────┬────┬────┬────┬────┬────┐
//!  │    │    │ 1  │ 3  │ 1  │ 1  │ 7  │    │    │     the number is the entry's count; 0 where it is free
//!  └────┴────┴────┴────┴────┴────┴────┴────┴────┘
//!            ▲ consumer takes          ▲ producer adds
//!              count → 0, tail + 1     ▲─ the same again, while it is the newest: count + 1
//! ```
//!
//! # Who may do what
//!
//! | word | producer | consumer |
//! | --- | --- | --- |
//! | `head` | stores, release, when the entry is written | loads, acquire |
//! | `tail` | loads, acquire, before it writes over an entry | stores, release, when the entry was read |
//! | an entry's words | stores while the entry is free, loads its own | loads |
//! | an entry's count | 0 → 1 with the words; *n* → *n* + 1 by compare-exchange, *n* not 0 | swaps with 0 |
//!
//! The count is the only word that both change, and decides the race between a repeat and the consumer: either the repeat
//! is in what the swap returns, or the exchange finds 0, which never comes back by itself, and the repeat becomes an entry of its
//! own. Nothing is counted twice, nothing is lost in silence.
//!
//! `tail`'s order keeps the consumer's reads of an entry before the producer's next writes to it. Loom never lets a load take effect
//! after a later store of its thread, so no torn record shows that it is missing: under loom both sides say when they use
//! an entry's words (`InTurn`), and it tells of two that nothing orders.
//!
//! A full ring takes no record: the producer counts it as lost and goes on. What is in the ring stays, as the first
//! records of a storm say more than the last.
//!
//! # Bounds
//!
//! [`push`](Ring::push) is straight-line code: a handful of loads and stores, at most one compare-exchange that is not repeated by us
//! (on Armv8.0 an exclusive pair, repeated only if something breaks into it). It takes no lock and waits for nobody,
//! so it may run in a fault handler under any lock. The producer's CPU does not interrupt itself: EL2 runs with
//! interrupts masked, and a handler that pushes accesses no memory that could fault.

#[cfg(not(any(loom, shuttle)))]
use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(any(loom, shuttle))]
use stage2::sync::{AtomicU64, InTurn, Ordering};

/// What a model checker is told of the words of an entry; else nothing.
#[cfg(not(any(loom, shuttle)))]
#[derive(Debug)]
struct InTurn;

#[cfg(not(any(loom, shuttle)))]
impl InTurn {
    #[inline(always)]
    const fn read(&self) {}

    #[inline(always)]
    const fn write(&self) {}
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is the only one in the ring: somebody has to come and take it.
    First,
    /// It was added to others.
    Added,
    /// The newest was the same: that counts one more.
    Counted,
    /// There was no room: it is lost, and the caller counts it.
    Lost,
}

/// A record and how often it was pushed, on a cache line of its own where `W` is up to 7.
#[derive(Debug)]
#[repr(align(64))]
struct Entry<const W: usize> {
    words: [AtomicU64; W],
    count: AtomicU64,
    turn: InTurn,
}

/// The newest record, of which a word is read when it is asked for: most that come after it differ in the first that is.
#[derive(Debug)]
pub struct Newest<'r, const W: usize>(&'r [AtomicU64; W]);

impl<'r, const W: usize> Newest<'r, W> {
    /// The record of these words.
    #[must_use]
    pub const fn new(words: &'r [AtomicU64; W]) -> Self {
        Self(words)
    }

    /// A word; 0 beyond the last.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, number: usize) -> u64 {
        self.0.get(number).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// A ring of `N` records of `W` words; `N` is a power of two, and at least 2.
#[derive(Debug)]
pub struct Ring<const N: usize, const W: usize> {
    /// Records pushed so far, repeats not counted.
    head: AtomicU64,
    /// Records taken so far.
    tail: AtomicU64,
    entries: [Entry<W>; N],
}

impl<const N: usize, const W: usize> Ring<N, W> {
    const MASK: usize = {
        assert!(N.is_power_of_two() && N >= 2, "the newest entry is none that is written over");
        N - 1
    };

    /// An empty one.
    #[cfg(not(any(loom, shuttle)))]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "kilobytes: for statics only")]
    pub const fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            entries: [const {
                Entry {
                    words: [const { AtomicU64::new(0) }; W],
                    count: AtomicU64::new(0),
                    turn: InTurn,
                }
            }; N],
        }
    }

    /// An empty one. A model checker's atomics are made at run time.
    #[cfg(any(loom, shuttle))]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "as without a checker")]
    pub fn new() -> Self {
        let entry = |_| Entry {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            count: AtomicU64::new(0),
            turn: InTurn::default(),
        };
        Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            entries: core::array::from_fn(entry),
        }
    }

    #[inline]
    fn entry(&self, number: u64) -> &Entry<W> {
        // The mask shows the compiler that no bound can be missed.
        #[expect(clippy::indexing_slicing, reason = "masked to the length, a power of two")]
        &self.entries[number as usize & Self::MASK]
    }

    /// Adds a record, or counts it if the newest is the same by `is_same(words, newest)`. For the producer only; never waits.
    #[inline]
    pub fn push(
        &self,
        words: [u64; W],
        is_same: impl FnOnce(&[u64; W], &Newest<'_, W>) -> bool,
    ) -> Pushed {
        let head = self.head.load(Ordering::Relaxed);
        let newest = self.entry(head.wrapping_sub(1));
        let count = newest.count.load(Ordering::Relaxed);
        if count != 0 {
            let before = Newest(&newest.words);
            // Taken meanwhile, it is 0 for good.
            if is_same(&words, &before) && newest.again(count) {
                return Pushed::Counted;
            }
        }
        let waiting = head.wrapping_sub(self.tail.load(Ordering::Acquire));
        if waiting >= N as u64 {
            return Pushed::Lost;
        }
        let entry = self.entry(head);
        entry.turn.write();
        for (word, value) in entry.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        entry.count.store(1, Ordering::Relaxed);
        self.head.store(head.wrapping_add(1), Ordering::Release);
        if waiting == 0 { Pushed::First } else { Pushed::Added }
    }

    /// Takes the oldest record, and how often it was pushed. For the consumer, one at a time.
    pub fn take(&self) -> Option<([u64; W], u64)> {
        let tail = self.tail.load(Ordering::Relaxed);
        if self.head.load(Ordering::Acquire) == tail {
            return None;
        }
        let entry = self.entry(tail);
        entry.turn.read();
        let words = entry.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        let count = entry.count.swap(0, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Some((words, count))
    }

    /// Whether there is nothing to take. Exact for the producer's CPU while nobody takes; else of a moment ago.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Relaxed)
    }
}

impl<const W: usize> Entry<W> {
    /// Counts one more; `false` if the entry was taken.
    #[inline]
    fn again(&self, count: u64) -> bool {
        let (old, new) = (count, count.wrapping_add(1));
        self.count.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
