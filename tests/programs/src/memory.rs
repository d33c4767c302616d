//! Table pages and frames, counted: each is in one pair of hands, and an allocation fails when it is told to.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mmu_oracle::OracleMachine;
use stage2::space::Frames;
use stage2::{Level, Memory, Pa, Table, TableMeta};

/// Where frames begin: above all table pages.
const FRAMES: u64 = 1 << 40;

/// What is where.
#[derive(Debug, Default)]
struct Books {
    /// Allocations so far, of tables and frames, successful or not.
    asked: usize,
    /// The allocation that fails.
    fails: Option<usize>,
    /// Allocations that found nothing, for whatever reason.
    refused: usize,
    /// Table pages in use.
    tables: BTreeSet<u64>,
    /// Table pages given back.
    tables_freed: usize,
    /// Frames in use: (address, bytes).
    frames: BTreeSet<(u64, u64)>,
    /// Frames that nobody uses.
    spare: BTreeSet<(u64, u64)>,
    next: u64,
}

/// The memory of a machine.
#[derive(Debug)]
pub struct Store<'m> {
    machine: &'m OracleMachine,
    books: Mutex<Books>,
}

/// How the books stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Allocations so far.
    pub asked: usize,
    /// Allocations that found nothing.
    pub refused: usize,
    /// Table pages in use.
    pub tables: usize,
    /// Table pages given back so far.
    pub tables_freed: usize,
    /// Frames in use.
    pub frames: usize,
}

impl<'m> Store<'m> {
    /// The memory of `machine`; the allocation with number `fails` finds nothing.
    #[must_use]
    pub fn new(machine: &'m OracleMachine, fails: Option<usize>) -> Self {
        let books = Books { fails, next: FRAMES, ..Books::default() };
        Self { machine, books: Mutex::new(books) }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the books stand.
    #[must_use]
    pub fn count(&self) -> Count {
        let books = self.books();
        Count {
            asked: books.asked,
            refused: books.refused,
            tables: books.tables.len(),
            tables_freed: books.tables_freed,
            frames: books.frames.len(),
        }
    }

    /// Table pages in use.
    #[must_use]
    pub fn tables(&self) -> BTreeSet<u64> {
        self.books().tables.clone()
    }

    /// Frames in use: (address, bytes).
    #[must_use]
    pub fn frames(&self) -> BTreeSet<(u64, u64)> {
        self.books().frames.clone()
    }

    /// A frame for a leaf of `level`: one that was used before, if there is one.
    #[must_use]
    pub fn take(&self, level: Level) -> Option<Pa> {
        let (mut books, bytes) = (self.books(), level.slot_bytes());
        if !books.admit() {
            return None;
        }
        let spare = books.spare.iter().find(|(_, size)| *size == bytes).copied();
        let frame = spare.unwrap_or_else(|| {
            let start = books.next.next_multiple_of(bytes);
            books.next = start + bytes;
            (start, bytes)
        });
        books.spare.remove(&frame);
        assert!(books.frames.insert(frame), "frame {:#x} is in use", frame.0);
        Some(Pa::new(frame.0))
    }

    /// Addresses of memory for a range of so many bytes, which lie as `like` does below `alike` bytes, a power of two.
    #[must_use]
    pub fn reserve(&self, like: u64, bytes: u64, alike: u64) -> Pa {
        let mut books = self.books();
        let start = books.next.next_multiple_of(1 << 30) + (like & (alike - 1));
        // 2 MiB apart, so that it is seen where they lie alike by accident.
        let start = start + if alike == 1 << 21 { alike } else { 0 };
        books.next = start + bytes;
        Pa::new(start)
    }

    /// Memory that was reserved is in use, as the frame of a leaf of `level`.
    pub fn enter(&self, frame: Pa, level: Level) {
        let frame = (frame.get(), level.slot_bytes());
        assert!(self.books().frames.insert(frame), "frame {:#x} is in use", frame.0);
    }

    /// Nobody uses the frame any more.
    pub fn give(&self, frame: Pa, level: Level) {
        let (mut books, frame) = (self.books(), (frame.get(), level.slot_bytes()));
        assert!(books.frames.remove(&frame), "frame {:#x} is given back twice", frame.0);
        books.spare.insert(frame);
    }
}

impl Books {
    /// Counts an allocation; whether it may succeed.
    fn admit(&mut self) -> bool {
        let fails = self.fails == Some(self.asked);
        self.asked += 1;
        self.refused += usize::from(fails);
        !fails
    }
}

// SAFETY: (1, 2, 3) as the machine's own memory, which it hands on.
unsafe impl Memory for &Store<'_> {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        if !self.books().admit() {
            return None;
        }
        let found = self.machine.alloc_table(pages);
        let mut books = self.books();
        let Some(pa) = found else {
            books.refused += 1;
            return None;
        };
        for page in 0..pages as u64 {
            assert!(books.tables.insert(pa.get() + page * 4096), "table {pa} is in use");
        }
        Some(pa)
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        {
            let mut books = self.books();
            for page in 0..pages as u64 {
                let was = books.tables.remove(&(pa.get() + page * 4096));
                assert!(was, "table {pa} is given back twice");
            }
            books.tables_freed += pages;
        }
        // SAFETY: (1, 2, 3) the caller's clauses.
        unsafe { (&self.machine).free_table(pa, pages) };
    }

    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        // SAFETY: (1) the caller's clause.
        unsafe { self.machine.meta_at(pa) }
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        assert!(self.books().tables.contains(&pa.get()), "{pa} is no table");
        // SAFETY: (1) the caller's clause.
        unsafe { self.machine.table_at(pa) }
    }
}

/// Frames of one size for one install, with what became of them.
#[derive(Debug)]
pub struct Source<'s, 'm> {
    store: &'s Store<'m>,
    level: Level,
    /// Frames that the install took.
    pub taken: Vec<Pa>,
    /// Frames that it gave back.
    pub returned: Vec<Pa>,
}

impl<'s, 'm> Source<'s, 'm> {
    /// Frames for leaves of `level`.
    #[must_use]
    pub const fn new(store: &'s Store<'m>, level: Level) -> Self {
        Self { store, level, taken: Vec::new(), returned: Vec::new() }
    }
}

// SAFETY: (1) each frame is in use once, aligned to its size, below 2^48, and given back after a flush only. (2) No
// guest runs: nothing is ever reached through these tables.
unsafe impl Frames for Source<'_, '_> {
    fn take(&mut self) -> Option<Pa> {
        let frame = self.store.take(self.level)?;
        self.taken.push(frame);
        Some(frame)
    }

    fn give_back(&mut self, frame: Pa) {
        self.store.give(frame, self.level);
        self.returned.push(frame);
    }
}
