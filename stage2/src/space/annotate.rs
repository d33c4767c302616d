//! Notes in slots where nothing is mapped: ballooned away, owned by somebody, to be emulated.
//!
//! A note is 51 bits of the caller's in an invalid descriptor, so hardware faults on it, and a fault
//! handler that meets it gets [`InstallError::Note`](super::InstallError::Note) instead of installing.
//! Only the slots say so; no list beside them can disagree. A range is noted by the largest slots
//! that fit, one for a GiB.

use super::content::{Content, largest};
use super::{Batch, MapError, Progress, Space, UnmapError};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::{Descriptor, Note, View};
use crate::epoch::Cpu;
use crate::memory::{ARITY as SLOTS, Memory};

/// One note for a whole range.
struct Noted {
    range: IpaRange,
    note: Note,
    coarsest: Level,
}

impl Content for Noted {
    const STEP: u64 = 0;
    const LEAVES: bool = false;

    fn is_the_vms(&self) -> bool {
        false
    }

    fn level_at(&self, ipa: Ipa, above: Level) -> Level {
        largest(self.range, ipa, self.coarsest.max(above))
    }

    fn at(&self, _: Ipa, _: Level) -> Result<Descriptor, MapError> {
        Ok(Descriptor::note(self.note))
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Puts `note` into a batch of the claimed range, as [`map`](Self::map) does with leaves: all of
    /// the batch, or nothing.
    ///
    /// # Errors
    /// [`MapError`]: [`Occupied`](MapError::Occupied) where a page or another note stands, also the
    /// same one.
    pub fn annotate(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        note: Note,
    ) -> Result<Progress, MapError> {
        let range = self.claimed(claim, batch.from).map_err(MapError::Claim)?;
        let coarsest = self.geometry.start().max(Level::L1);
        self.fill(cpu, range, batch, &Noted { range, note, coarsest })
    }

    /// Takes the notes out of a batch of the claimed range. `removed` hears of each: its address, its
    /// bytes and its payload.
    ///
    /// The caller holds no guard and no lock; `removed` runs under the table's lock. Fault handlers that read the note before may still use
    /// the payload: whoever frees it waits for a grace period first.
    ///
    /// # Errors
    /// [`UnmapError`]: a note that reaches over the edge of the range stays.
    pub fn deannotate(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        mut removed: impl FnMut(Ipa, u64, Note),
    ) -> Result<Progress, UnmapError> {
        let range = self.claimed(claim, batch.from).map_err(UnmapError::Claim)?;
        if !cpu.is_quiescent() {
            // It might hold the lock that is about to be taken.
            return Err(UnmapError::NotQuiescent);
        }
        let (mut at, mut left) = (batch.from, batch.slots.max(1));
        while at < range.end() && left > 0 {
            let guard = cpu.enter();
            let path = self.path(&guard, at).ok_or(UnmapError::ForeignGuard)?;
            let Some(node) = path.leaf() else { break };
            // Stale: look again.
            let Ok(table) = node.lock(&self.arch, &guard) else { continue };
            let (level, bytes) = (table.level(), table.level().slot_bytes());
            let end = node.end().min(range.end().get());
            while at.get() < end && left > 0 {
                let index = level.index(at);
                if index >= SLOTS {
                    at = Ipa::new(end);
                    break;
                }
                let (slot, ipa) = (node.table.slot(index), node.ipa_of(index));
                match slot.load(&self.arch).view(level) {
                    View::Table(_) => break,
                    View::Note(_)
                        if ipa < range.start() || ipa.get() + bytes > range.end().get() =>
                    {
                        return Err(UnmapError::Straddles { ipa, level });
                    }
                    View::Note(note) => {
                        // SAFETY: (1) the table's lock is held, and the claim covers the slot; (2) a
                        // Note was never live, so no flush stands between it and Empty.
                        unsafe { self.arch.store(slot, Descriptor::EMPTY.bits()) };
                        removed(ipa, bytes, note);
                    }
                    _ => {}
                }
                left -= 1;
                at = Ipa::new((ipa.get() + bytes).min(end));
            }
        }
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }
}
