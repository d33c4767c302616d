//! Operations on ranges, as a PE does them.

use stage2::space::{Batch, Extent, MapError, Notes, Progress, Release};
use stage2::{
    Claim, ClaimError, Flushed, Former, Ipa, IpaRange, Level, Note, Owner, PAGE_SIZE, Pa,
    UnmapError,
};

use crate::sched::atomic::Ordering;
use crate::sched::thread;
use crate::world::{Pe, SECRET, World, page};

/// Pages side by side, by number.
///
/// # Panics
/// If there are none.
#[must_use]
pub fn pages(first: u64, count: u64) -> IpaRange {
    IpaRange::new(page(first), count * PAGE_SIZE).expect("some pages")
}

/// The span of a table of pages: the `number`th of the VM.
///
/// # Panics
/// Never.
#[must_use]
pub fn table(number: u64) -> IpaRange {
    let bytes = Level::L3.table_bytes();
    IpaRange::new(Ipa::new(number * bytes), bytes).expect("512 pages")
}

/// A note with this payload.
///
/// # Panics
/// If it does not fit.
#[must_use]
pub fn note(payload: u64) -> Note {
    Note::new(payload).expect("a small payload")
}

/// Frames that come back serve somebody else at once.
#[derive(Debug)]
pub struct Freed<'w> {
    world: &'w World,
    /// Where they were, in the order in which they came back.
    pub frames: Vec<(Ipa, Pa)>,
}

impl<'w> Freed<'w> {
    /// None yet.
    #[must_use]
    pub const fn new(world: &'w World) -> Self {
        Self { world, frames: Vec::new() }
    }
}

impl Release for Freed<'_> {
    fn frame(&mut self, ipa: Ipa, former: &Former, _: &Flushed) {
        self.world.frame(former.pa()).store(SECRET, Ordering::Relaxed);
        self.world.free_frame(former.pa());
        self.frames.push((ipa, former.pa()));
    }
}

impl<'w> Pe<'w> {
    /// Claims a range, as soon as nobody else has a part of it. Returns how often somebody had.
    ///
    /// # Panics
    /// If it cannot be claimed at all.
    pub fn claim(&self, range: IpaRange) -> (Claim<'w>, usize) {
        let mut conflicts = 0;
        loop {
            match self.world.space().claim(range) {
                Ok(claim) => return (claim, conflicts),
                Err(ClaimError::Conflict { .. }) => conflicts += 1,
                Err(other) => panic!("{other}"),
            }
            thread::yield_now();
        }
    }

    /// One batch of an unmap. Returns what came back.
    ///
    /// # Errors
    /// As of [`Space::unmap`](stage2::Space::unmap).
    pub fn unmap(
        &self,
        claim: &mut Claim<'_>,
        batch: Batch,
        notes: Notes,
    ) -> (Result<Progress, UnmapError>, Vec<(Ipa, Pa)>) {
        let mut freed = Freed::new(self.world);
        let relax = self.world.patience();
        let done = self.world.space().unmap(&self.cpu, claim, batch, notes, relax, &mut freed);
        assert!(self.cpu.is_quiescent(), "an unmap gives back its guards and locks");
        (done, freed.frames)
    }

    /// A whole range in one batch.
    ///
    /// # Panics
    /// If it fails.
    pub fn unmap_all(&self, range: IpaRange, notes: Notes) -> Vec<(Ipa, Pa)> {
        let (mut claim, _) = self.claim(range);
        let batch = Batch::all_of(&claim);
        let (done, freed) = self.unmap(&mut claim, batch, notes);
        assert_eq!(done, Ok(Progress::Done));
        freed
    }

    /// Maps a range to memory from `pa` on, by pages.
    ///
    /// # Errors
    /// As of [`Space::map`](stage2::Space::map).
    pub fn map(
        &self,
        claim: &mut Claim<'_>,
        pa: Pa,
        coarsest: Level,
    ) -> Result<Progress, MapError> {
        let attributes = *self.world.leaf();
        let extent = Extent { pa, attributes, owner: Owner::Vm, coarsest };
        let batch = Batch::all_of(claim);
        // SAFETY: (1) the memory was taken for this VM. (2) It was filled; there are no caches.
        unsafe { self.world.space().map(&self.cpu, claim, batch, &extent) }
    }

    /// Puts a note into every slot of a range.
    ///
    /// # Errors
    /// As of [`Space::annotate`](stage2::Space::annotate).
    pub fn annotate(&self, claim: &mut Claim<'_>, payload: u64) -> Result<Progress, MapError> {
        let batch = Batch::all_of(claim);
        self.world.space().annotate(&self.cpu, claim, batch, note(payload))
    }

    /// Takes the notes of a range out; their payloads, by address.
    ///
    /// # Panics
    /// If it fails.
    pub fn deannotate(&self, claim: &mut Claim<'_>) -> Vec<(Ipa, u64)> {
        let mut gone = Vec::new();
        let batch = Batch::all_of(claim);
        let done = self
            .world
            .space()
            .deannotate(&self.cpu, claim, batch, |ipa, _, note| gone.push((ipa, note.get())));
        assert_eq!(done, Ok(Progress::Done));
        gone
    }
}
