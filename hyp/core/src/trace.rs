//! The trace buffer: what the hypervisor did to translation tables and TLBs, as records in memory.
//!
//! ```text
//!  hyp, feature `trace`             guest RAM of QEMU, shared with the host        hypctl run --trace
//!  ─────────────────────────────────────────────────────────────────────────────────────────────
//!  Buffer::start ──▶ zero, head, magic
//!  Buffer::record ─▶ next += 1 ──▶ | head | record 0 | record 1 | …          |
//!                                    └────────── after QEMU has ended ─────────▶ Contents::read
//! ```
//!
//! Both ends agree on this module and on nothing else. The buffer is read when nobody writes any more,
//! whatever ended the machine: so it needs no protocol, only a layout that says how far it got.
//!
//! * A record's number is taken from [`Head`]'s counter before the record is written, so numbers are
//!   never shared. A record that finds no room is counted and not written.
//! * Word 0 of a record is written last and holds the record's number plus one: a record that a CPU
//!   had begun when the machine ended reads as *incomplete*, not as something that did not happen.
//! * The head names the run by its nonce: memory of another run is no trace of this one.
//!
//! Whether the numbers give the order in which things took effect is up to who calls [`Buffer::record`]:
//! see [`Order`].

mod record;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

pub use record::{Access, Barrier, Invalidation, Record, What};

/// First word of a buffer that is in use: the name of the layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"s2trace1");
/// Bytes of a record.
pub const RECORD_BYTES: usize = 32;
/// Bytes of the head.
pub const HEAD_BYTES: usize = HEAD_WORDS * 8;
/// More records than this have no numbers.
pub const MOST_RECORDS: u64 = u32::MAX as u64 - 1;

const HEAD_WORDS: usize = 32;
const NONCE_WORDS: usize = 8;

/// Words of the head.
mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const CAPACITY: usize = 1;
    pub(super) const NEXT: usize = 2;
    pub(super) const ORDER: usize = 3;
    pub(super) const CPUS: usize = 4;
    pub(super) const START_LEVEL: usize = 5;
    pub(super) const ROOT_PAGES: usize = 6;
    pub(super) const BBM: usize = 7;
    pub(super) const VTCR: usize = 8;
    pub(super) const DEAD: usize = 9;
    pub(super) const NONCE: usize = 16;
}

/// What the numbers of the records say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// The order in which everything took effect: each step and its record happen under one lock.
    Total,
    /// The order of each CPU's own steps. Those of different CPUs are numbered about when they happened.
    PerCpu,
}

/// What a trace must be read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// What the numbers say.
    pub order: Order,
    /// CPUs: numbers 0 up to here.
    pub cpus: u64,
    /// Level at which walks start.
    pub start_level: u64,
    /// Table pages of the root.
    pub root_pages: u64,
    /// FEAT_BBM.
    pub bbm: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// What software writes into the slots of a table that goes away.
    pub dead: u64,
}

/// The buffer in memory, for `N` records.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Buffer<const N: usize> {
    head: [AtomicU64; HEAD_WORDS],
    records: [[AtomicU64; 4]; N],
}

impl<const N: usize> Buffer<N> {
    /// One that is not in use.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "megabytes: for statics only")]
    pub const fn new() -> Self {
        Self {
            head: [const { AtomicU64::new(0) }; HEAD_WORDS],
            records: [const { [const { AtomicU64::new(0) }; 4] }; N],
        }
    }

    /// Begins a trace of at most `most` records. Called once, before anybody records.
    ///
    /// Whatever the memory held is overwritten.
    pub fn start(&self, setup: &Setup, nonce: &str, most: Option<u64>) {
        self.records.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        let capacity = most.unwrap_or(u64::MAX).min(N as u64).min(MOST_RECORDS);
        let mut words = [0; HEAD_WORDS];
        let mut set = |at: usize, value| {
            if let Some(word) = words.get_mut(at) {
                *word = value;
            }
        };
        set(word::CAPACITY, capacity);
        set(word::ORDER, u64::from(setup.order == Order::PerCpu));
        set(word::CPUS, setup.cpus);
        set(word::START_LEVEL, setup.start_level);
        set(word::ROOT_PAGES, setup.root_pages);
        set(word::BBM, setup.bbm);
        set(word::VTCR, setup.vtcr);
        set(word::DEAD, setup.dead);
        for (at, eight) in nonce.as_bytes().chunks(8).take(NONCE_WORDS).enumerate() {
            set(word::NONCE.wrapping_add(at), nonce_word(eight));
        }
        for (word, value) in self.head.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        self.word(word::MAGIC).store(MAGIC, Ordering::Release);
    }

    /// Adds a record; counts it if there is no room. Returns whether there was.
    #[inline]
    pub fn record(&self, record: Record) -> bool {
        let number = self.word(word::NEXT).fetch_add(1, Ordering::Relaxed);
        if number >= self.word(word::CAPACITY).load(Ordering::Relaxed) {
            return false;
        }
        let place = usize::try_from(number).ok().and_then(|number| self.records.get(number));
        let Some([head, operands @ ..]) = place else {
            return false;
        };
        let [first, rest @ ..] = record.encode(number);
        for (word, value) in operands.iter().zip(rest) {
            word.store(value, Ordering::Relaxed);
        }
        head.store(first, Ordering::Release);
        true
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        // The mask shows the compiler that no bound can be missed.
        #[expect(clippy::indexing_slicing, reason = "masked to the length, a power of two")]
        &self.head[at & (HEAD_WORDS - 1)]
    }
}

/// Eight characters of a nonce as a word.
fn nonce_word(eight: &[u8]) -> u64 {
    eight.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Why memory is no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Too short for a head, or for the records that the head speaks of.
    #[error("the trace buffer has {0} bytes, which is too few")]
    Short(usize),
    /// Not begun, or not a buffer.
    #[error("the hypervisor had not begun a trace")]
    NotBegun,
    /// Another run's.
    #[error("the trace buffer is of another run")]
    OtherRun,
    /// A head with values that make no sense.
    #[error("word {at} of the trace buffer's head is {value:#x}")]
    Head {
        /// Which word.
        at: usize,
        /// What it holds.
        value: u64,
    },
    /// A record that is none.
    #[error("record {number} of the trace buffer begins with {head:#x}")]
    Record {
        /// Which.
        number: u64,
        /// Its first word.
        head: u64,
    },
}

/// The head, as the host reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the trace must be read with.
    pub setup: Setup,
    /// Records that were written, or begun.
    pub records: u64,
    /// Records that found no room.
    pub dropped: u64,
}

impl Head {
    /// Reads the first [`HEAD_BYTES`] of a buffer.
    ///
    /// # Errors
    /// [`TraceError`]: no trace was begun, or not in the run with this nonce.
    pub fn read(bytes: &[u8], nonce: &str) -> Result<Self, TraceError> {
        let (words, _) = bytes.as_chunks::<8>();
        let words = words.get(..HEAD_WORDS).ok_or(TraceError::Short(bytes.len()))?;
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
        if word(word::MAGIC) != MAGIC {
            return Err(TraceError::NotBegun);
        }
        let found = (0..NONCE_WORDS).map(|at| word(word::NONCE.wrapping_add(at)));
        let wanted = nonce.as_bytes().chunks(8).map(nonce_word).chain(core::iter::repeat(0));
        if nonce.len() > NONCE_WORDS.wrapping_mul(8) || !found.eq(wanted.take(NONCE_WORDS)) {
            return Err(TraceError::OtherRun);
        }
        let at_most = |at: usize, most: u64| match word(at) {
            value if value <= most => Ok(value),
            value => Err(TraceError::Head { at, value }),
        };
        let capacity = at_most(word::CAPACITY, MOST_RECORDS)?;
        let next = word(word::NEXT);
        let setup = Setup {
            order: match at_most(word::ORDER, 1)? {
                0 => Order::Total,
                _ => Order::PerCpu,
            },
            cpus: at_most(word::CPUS, 64)?,
            start_level: at_most(word::START_LEVEL, 3)?,
            root_pages: at_most(word::ROOT_PAGES, 16)?,
            bbm: at_most(word::BBM, 2)?,
            vtcr: word(word::VTCR),
            dead: word(word::DEAD),
        };
        Ok(Self { setup, records: next.min(capacity), dropped: next.saturating_sub(capacity) })
    }

    /// Bytes of the buffer that are in use, the head included.
    #[must_use]
    pub fn used(&self) -> u64 {
        (HEAD_BYTES as u64).saturating_add(self.records.saturating_mul(RECORD_BYTES as u64))
    }
}

/// A trace as the host reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The head.
    pub head: Head,
    /// What was recorded, in order of the numbers.
    pub records: Vec<Record>,
    /// Records that a CPU had begun and not finished.
    pub incomplete: u64,
}

impl Contents {
    /// Reads the used part of a buffer.
    ///
    /// # Errors
    /// [`TraceError`]: not a trace of the run with this nonce, or not in order.
    pub fn read(bytes: &[u8], nonce: &str) -> Result<Self, TraceError> {
        let head = Head::read(bytes, nonce)?;
        let used = usize::try_from(head.used()).ok().and_then(|used| bytes.get(HEAD_BYTES..used));
        let (records, _) = used.ok_or(TraceError::Short(bytes.len()))?.as_chunks::<RECORD_BYTES>();
        let mut contents = Self { head, records: Vec::new(), incomplete: 0 };
        for (number, record) in (0..).zip(records) {
            let (words, _) = record.as_chunks::<8>();
            let mut four = [0; 4];
            for (word, bytes) in four.iter_mut().zip(words) {
                *word = u64::from_le_bytes(*bytes);
            }
            match Record::decode(four, number)? {
                Some(record) => contents.records.push(record),
                None => contents.incomplete = contents.incomplete.saturating_add(1),
            }
        }
        Ok(contents)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Total => "total",
            Self::PerCpu => "per-pe",
        })
    }
}
