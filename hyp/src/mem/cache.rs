//! A CPU's own stock of frames: zeroed, clean, ready to become guest memory or a table.
//!
//! The fault path takes from here and from nowhere else: no lock, no allocation, no zeroing. The run
//! loop refills the stock at a safe point, when no guard and no lock is held ([`Stock::refill`]); a
//! fault that finds it empty returns to the run loop and happens again.
//!
//! A frame in the stock is all zero for a guest that looks past the caches too, and no CPU holds instructions
//! of its former life: `clean` does what the machine needs for that.
//!
//! Where RAM is populated by blocks, the stock holds one block as well ([`Stock::refill_block`]).
//!
//! The stock belongs to one CPU and to no interrupt handler: EL2 runs with everything masked. So plain
//! cells do, and the type is `!Sync`.

use core::cell::Cell;

/// Size of a block, in bytes.
pub(crate) use hyp_abi::call::BLOCK;
use hyp_core::PaRange;

use super::{PAGE, clean, frames};
/// Frames of a block.
pub(crate) const BLOCK_FRAMES: usize = (BLOCK / PAGE) as usize;

/// Frames in a full stock.
pub(crate) const FULL: usize = 64;
/// A stock with fewer is refilled: one fault takes a page and, at the most, three tables.
pub(crate) const LOW: usize = 8;

/// A CPU's stock.
#[derive(Debug)]
pub(crate) struct Stock {
    frames: [Cell<u64>; FULL],
    len: Cell<usize>,
    /// A block of [`BLOCK`] bytes.
    block: Cell<Option<u64>>,
}

impl Stock {
    /// An empty stock.
    pub(crate) const fn new() -> Self {
        Self { frames: [const { Cell::new(0) }; FULL], len: Cell::new(0), block: Cell::new(None) }
    }

    /// Takes a zeroed frame.
    #[inline(always)]
    pub(crate) fn take(&self) -> Option<u64> {
        let len = self.len.get().checked_sub(1)?;
        self.len.set(len);
        self.frames.get(len).map(Cell::get)
    }

    /// Puts back a frame that [`take`](Self::take) gave, all zero and clean; `false` if there is no
    /// room for it.
    #[inline]
    pub(crate) fn put_back(&self, frame: u64) -> bool {
        match self.frames.get(self.len.get()) {
            Some(slot) => {
                slot.set(frame);
                self.len.set(self.len.get() + 1);
                true
            }
            None => false,
        }
    }

    /// Whether [`refill`](Self::refill) is due.
    #[inline]
    pub(crate) fn is_low(&self) -> bool {
        self.len.get() < LOW
    }

    /// Whether there are so many frames.
    pub(crate) fn has(&self, frames: usize) -> bool {
        self.len.get() >= frames
    }

    /// Fills the stock from the pool. For a safe point: it takes the pool's lock, and it takes long.
    ///
    /// Returns whether the stock is now above [`LOW`]; if not, RAM is used up.
    pub(crate) fn refill(&self) -> bool {
        let mut batch = [0; FULL];
        let wanted = FULL.saturating_sub(self.len.get());
        let taken = frames::take_batch(batch.get_mut(..wanted).unwrap_or_default());
        for frame in batch.into_iter().take(taken) {
            // SAFETY: (1) just taken: ours alone, one page long.
            unsafe { wipe(frame, PAGE) };
            let _fits = self.put_back(frame);
        }
        if taken != 0 {
            clean::instructions_for_guest();
        }
        !self.is_low()
    }

    /// Takes the zeroed block.
    pub(crate) fn take_block(&self) -> Option<u64> {
        self.block.take()
    }

    /// Puts back the block that [`take_block`](Self::take_block) gave, all zero and clean.
    pub(crate) fn put_back_block(&self, block: u64) {
        self.block.set(Some(block));
    }

    /// Sees to it that there is a block, if the pool has one. For a safe point, like [`refill`](Self::refill):
    /// zeroing takes long.
    pub(crate) fn refill_block(&self) {
        if self.block.get().is_some() {
            return;
        }
        let Some(block) = frames::take(BLOCK_FRAMES) else { return };
        // SAFETY: (1) just taken: ours alone.
        unsafe { wipe(block, BLOCK) };
        clean::instructions_for_guest();
        self.put_back_block(block);
    }

    /// Gives every frame back to the pool.
    pub(crate) fn empty(&self) {
        while let Some(frame) = self.take() {
            // SAFETY: (1) from the pool, by `refill` or by way of a table page; (2) in the stock it was
            // nobody's.
            unsafe { frames::give_back(frame, 1) };
        }
        if let Some(block) = self.take_block() {
            // SAFETY: (1) from the pool, by `refill_block`; (2) in the stock it was nobody's.
            unsafe { frames::give_back(block, BLOCK_FRAMES) };
        }
    }
}

/// Zeroes `bytes` bytes from `start`, for a guest's eyes or a walker's.
///
/// # Safety
/// 1. They are whole frames of the caller's, in no table and reached by nobody else.
#[inline(never)]
pub(crate) unsafe fn wipe(start: u64, bytes: u64) {
    let pages = PaRange { start, end: start.saturating_add(bytes) };
    // SAFETY: (1) the caller's clause 1; frames are mapped writable, Normal.
    unsafe { clean::zero(pages) };
    clean::for_guest(pages);
}
