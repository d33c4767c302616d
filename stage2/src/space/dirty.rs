//! The dirty log: which pages of a range were written since somebody asked last.
//!
//! ```text
//!  start     a session is published; grace period
//!  harvest   dirty leaf -> writable-clean; one flush for the batch; only then the bits of its pages are set
//!  who asks  takes bits out, by an atomic exchange of words, and copies those pages
//!  ...       again and again; the last time with the vCPUs stopped
//!  stop      writable-clean, writable-dirty -> writable; tables that logging made become blocks again
//! ```
//!
//! **Every write is reported by the harvest under way or by the next one.** What makes it true:
//!
//! * *S2AP\[1\] is the only dirty record of a leaf.* It is set by hardware where that manages the dirty state, and by a
//!   fault handler elsewhere, with one exchange: nobody can tell the difference here.
//! * *Any leaf that has it counts as dirty*, with DBM or without. So a page that a fault installs is dirty, by whatever
//!   decision it was installed, and a session begins with no sweep. Its first harvest of a span reports all that
//!   is mapped there, what cannot be written included: that is the first copy of a migration.
//! * *What replaces a leaf delivers its record.* Split, collapse and moves of pages into a block hand S2AP\[1\] on. An
//!   unmap sets the bits of all that it takes, whatever they said: what was there is gone. So does a map, and who
//!   takes S2AP\[1\] otherwise ([`protect`](Space::protect)).
//! * *EL2's own writes are recorded in the leaf, too* ([`write_through`](Space::write_through)).
//!
//! # Who excludes whom
//!
//! A harvest has a claim on its range, and so has whatever takes leaves away. Start and stop claim all of the
//! session's range: no such operation is under way then, so each goes by one session from its beginning to its end, and
//! looks for it once. What races with a harvest is hardware, fault handlers and EL2's own writes, and these meet it in the
//! slot. Who has no claim sees the session under a guard, and without a lock: start and stop wait for a grace period, and no
//! session starts before that of the last one's stop is over.
//!
//! # Bits after the flush
//!
//! Until the flush is over a TLB may hold the leaf as it was, and a guest may write by it unrecorded:
//!
//! ```text
//! PE 0, harvests                      PE 1, asks                  PE 2, guest
//!                                                                 wrote page 7: the leaf is dirty, the TLB has it so
//! leaf: dirty -> clean
//! bit 7 <- 1                          <- too early
//!                                     takes bit 7, copies page 7
//!                                                                 writes page 7, by its TLB: nothing to record
//! flush                               <- page 7 is clean, and its copy is old
//! ```
//!
//! So a harvest keeps what it was told until the flush is over (`dirty/found.rs`); that bounds its batch. Bits that an unmap sets
//! come after its flush as well.
//!
//! # The size of what is logged
//!
//! A block that is written is dirty as a whole. [`LogBlocks::Split`] has a harvest split the blocks that it comes to;
//! a second bitmap, of a bit for each 2 MiB, remembers where, and stop makes these blocks again if they still can be. A
//! third, alike, says where a harvest has been.

mod error;
mod found;
mod harvest;
mod session;
mod stop;
mod write;

pub use error::{DirtyError, WriteError};
pub use session::{Bitmaps, LogBlocks};
pub(super) use session::{Log, Session};

use super::{Progress, Space};
use crate::addr::IpaRange;
use crate::arch::Arch;
use crate::claim::Claim;
use crate::epoch::{Cpu, Guard};
use crate::memory::Memory;

/// What a batch of a harvest has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harvested {
    /// Where it has come to.
    pub progress: Progress,
    /// Pages of 4 KiB whose leaves were dirty. Their bits are set, and perhaps others: what an unmap has taken, what
    /// cannot be written and was met for the first time.
    pub pages: u64,
}

/// What a batch of a stop has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Where it has come to.
    pub progress: Progress,
    /// Blocks that logging had split and that are blocks again.
    pub collapsed: u64,
    /// Such that stay tables: something else was mapped there meanwhile, or it differs.
    pub stay: u64,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Starts the VM's dirty session, for all of the claimed range. The bits of pages that are set stay set.
    ///
    /// Changes no leaf, so it costs the guest nothing. Waits for a grace period; `relax` runs while it lasts.
    ///
    /// # Errors
    /// [`DirtyError`]: there is a session, a bitmap is not of the size that [`Bitmaps::words`] says, the claim is another VM's,
    /// or this CPU is inside a guard, or of other epochs. Nothing has changed.
    ///
    /// # Safety
    /// 1. The bitmaps stay where they are, and are written by atomic accesses only, until
    ///    [`dirty_stop`](Self::dirty_stop) has said [`Progress::Done`], or the space is gone.
    pub unsafe fn dirty_start(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        bitmaps: &Bitmaps<'_>,
        blocks: LogBlocks,
        relax: impl FnMut(),
    ) -> Result<(), DirtyError> {
        let range = claim.range();
        self.claimed(claim, range.start()).map_err(DirtyError::Claim)?;
        self.can_wait(cpu)?;
        // SAFETY: (1) the caller's clause.
        let session = unsafe { Session::new(range, bitmaps, blocks) }?;
        self.log.publish(&self.arch, session)?;
        // Whoever looked for a session under a guard, and found none, has done what he did about it.
        let waited = cpu.wait(relax);
        debug_assert_eq!(
            waited,
            Ok(()),
            "this CPU could wait above, and has entered nothing since"
        );
        Ok(())
    }

    /// Whether a CPU could wait for whoever has found the session, or none, under a guard.
    fn can_wait(&self, cpu: &Cpu<'_>) -> Result<(), DirtyError> {
        if !cpu.is_quiescent() {
            return Err(DirtyError::NotQuiescent);
        }
        if !self.domain.owns(&cpu.enter()) {
            return Err(DirtyError::ForeignCpu);
        }
        Ok(())
    }

    /// The range of the dirty session, if there is one that is not being stopped.
    #[must_use]
    pub fn dirty_range(&self) -> Option<IpaRange> {
        self.log.running(&self.arch).ok().map(|session| session.range)
    }

    /// Sets the bits of a range, as far as the dirty session covers it: its content has changed, and no leaf says so. After an
    /// install of a page that cannot be written, for one. The guard is the one under which that was done. Takes no lock, unless
    /// the guard is of other epochs than the tables: it keeps no session where it is, and the session's lock does instead.
    pub fn dirty_mark(&self, guard: &Guard<'_>, range: IpaRange) {
        if self.domain.owns(guard) {
            // SAFETY: (1) of the tables' epochs, and no CPU of others stops a session.
            unsafe { self.log.mark(guard, range) };
        } else {
            self.log.mark_locked(&self.arch, range);
        }
    }

    /// Likewise, for who has a claim.
    pub(super) fn mark_logged(&self, range: IpaRange) {
        if let Some(session) = self.log.covering(&self.arch, range) {
            session.mark(range);
        }
    }

    /// Whether a dirty session covers a part of a range, on which the caller has a claim: this stays so then.
    pub(super) fn logs(&self, range: IpaRange) -> bool {
        self.log.may_cover(range)
    }
}
