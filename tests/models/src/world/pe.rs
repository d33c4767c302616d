//! A PE, with frames at its hand.

use std::cell::{Cell, RefCell};

use stage2::epoch::Cpu;
use stage2::space::Frames;
use stage2::{Install, InstallError, Ipa, Level, Owner, Pa, Tally};

use super::{FILLED, FRAME_STRIDE, FRAMES, RUBBISH, SECRET, World, lock};
use crate::sched::atomic::Ordering;

/// One PE, in its fault handler or in its guest.
#[derive(Debug)]
pub struct Pe<'w> {
    /// The VM.
    pub world: &'w World,
    /// The right to open guards.
    pub cpu: Cpu<'w>,
    stock: RefCell<Stock<'w>>,
    tally: Cell<Tally>,
}

/// Frames at a PE's hand, by number.
#[derive(Debug)]
struct Stock<'w> {
    world: &'w World,
    at_hand: Vec<usize>,
}

impl<'w> Pe<'w> {
    /// With these frames at hand.
    pub(super) fn new(world: &'w World, cpu: Cpu<'w>, frames: &[usize]) -> Self {
        let stock = RefCell::new(Stock { world, at_hand: frames.to_vec() });
        Self { world, cpu, stock, tally: Cell::default() }
    }

    /// A fault on `ipa`: populates it with a page of level 3, or a block of level 2.
    ///
    /// # Errors
    /// As of [`Space::install`].
    ///
    /// # Panics
    /// When it meets what an unallocated page holds.
    pub fn install(&self, ipa: Ipa, level: Level) -> Result<Install, InstallError> {
        let space = self.world.space();
        let mapping = space.mapping(level, &self.world.leaf, Owner::Vm).unwrap();
        let mut tally = self.tally.get();
        let mut frames = self.stock.borrow_mut();
        let result = space.install(&self.cpu.enter(), ipa, &mapping, &mut *frames, &mut tally);
        self.tally.set(tally);
        if let Err(InstallError::Occupied { seen, .. }) = result {
            assert_ne!(seen.bits(), RUBBISH, "an install met rubbish");
        }
        result
    }

    /// A wild access at `ipa`: shows the scratch page there.
    ///
    /// # Errors
    /// As of [`Space::install_scratch`].
    ///
    /// # Panics
    /// When it meets what an unallocated page holds.
    pub fn reach(&self, ipa: Ipa) -> Result<Install, InstallError> {
        let (space, scratch, mut tally) = (&self.world.space, self.world.scratch(), self.tally());
        let result = space.install_scratch(&self.cpu.enter(), ipa, &scratch, &mut tally);
        self.tally.set(tally);
        if let Err(InstallError::Occupied { seen, .. }) = result {
            assert_ne!(seen.bits(), RUBBISH, "an install met rubbish");
        }
        result
    }

    /// What its installs did, in all.
    pub fn tally(&self) -> Tally {
        self.tally.get()
    }

    /// Frames at hand.
    pub fn at_hand(&self) -> usize {
        self.stock.borrow().at_hand.len()
    }

    /// A frame of its own, filled, that no table knows of yet.
    pub fn take(&self) -> Pa {
        self.stock.borrow_mut().take().expect("a frame is at hand")
    }
}

// SAFETY: (1, 2) a frame is at one PE's hand only, and is filled here; there are no caches.
unsafe impl Frames for Stock<'_> {
    fn take(&mut self) -> Option<Pa> {
        let pa = Pa::new(FRAMES + self.at_hand.pop()? as u64 * FRAME_STRIDE);
        assert!(lock(&self.world.taken).insert(pa.get()), "frame {pa} was taken twice");
        self.world.frame(pa).store(FILLED, Ordering::Relaxed);
        Some(pa)
    }

    fn give_back(&mut self, frame: Pa) {
        assert!(lock(&self.world.taken).remove(&frame.get()), "frame {frame} came back twice");
        self.world.frame(frame).store(SECRET, Ordering::Relaxed);
        self.at_hand.push(((frame.get() - FRAMES) / FRAME_STRIDE) as usize);
    }
}
