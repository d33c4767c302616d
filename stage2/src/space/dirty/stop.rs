//! The end of a session: leaves are as if it had never been.

use super::found::SLOTS;
use super::session::SPAN;
use super::{DirtyError, Session, Stopped};
use crate::addr::{Ipa, Level};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::Change;
use crate::epoch::Cpu;
use crate::memory::{ARITY, Memory};
use crate::space::{Batch, Collapse, Progress, Relax, Space};

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Stops the session, whose range is claimed, batch by batch: so many slots a call, 4096 at the most, from where the
    /// last call came to. From the first call on nothing is harvested any more; what no harvest has reported is
    /// lost. When it says [`Progress::Done`] there is no session, and the bitmaps are the caller's alone.
    ///
    /// Leaves whose dirty state is managed become writable: no write faults any more. What logging has split becomes
    /// blocks again, of 2 MiB, where it still can. `relax` runs while others' guards are waited for.
    ///
    /// # Errors
    /// [`DirtyError`]: the session goes on being stopped from where it has come to, and another call may end it, also after a
    /// panic in `relax`. Of a batch that fails leaves may be writable already, and what logging has split may stay split. A
    /// block or a run over the edge of the range is in the way (`Straddles`, `CutsRun`) until somebody splits or dissolves
    /// it: sessions are for ranges that cut none.
    pub fn dirty_stop(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        slots: usize,
        mut relax: impl FnMut(),
    ) -> Result<Stopped, DirtyError> {
        let range = claim.range();
        self.claimed(claim, range.start()).map_err(DirtyError::Claim)?;
        // Also one that is hidden, by a call that did not come to its end.
        let session = self.log.held(&self.arch).ok_or(DirtyError::NoSession)?;
        if session.range != range {
            return Err(DirtyError::NotAll { claimed: range, session: session.range });
        }
        self.can_wait(cpu)?;
        let from = session.stopped.unwrap_or(range.start());
        let until = self.unmanage(cpu, claim, Batch { from, slots: slots.min(SLOTS) })?;
        self.log.stopped_until(&self.arch, until);
        let (collapsed, stay) =
            self.collapse_back(cpu, claim, &session, (from, until), &mut relax)?;
        if until < range.end() {
            return Ok(Stopped { progress: Progress::Until(until), collapsed, stay });
        }
        self.log.hide();
        // Whoever found the session under a guard has set his bits; only then another may begin. Fails if `relax` has left a
        // guard open: then the session stays hidden, until another call ends it.
        cpu.wait(relax).map_err(|_| DirtyError::NotQuiescent)?;
        self.log.end(&self.arch);
        Ok(Stopped { progress: Progress::Done, collapsed, stay })
    }

    /// Has the leaves of a batch be writable, if their dirty state is managed. Returns where it has come to.
    fn unmanage(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
    ) -> Result<Ipa, DirtyError> {
        let end = claim.range().end();
        if batch.from >= end {
            return Ok(end);
        }
        let guard = cpu.enter();
        let mut transaction =
            self.modify_prot(&guard, claim, batch, Relax::Everywhere).map_err(DirtyError::Prot)?;
        let outcome = transaction.each(|_, _| Some(Change::UNMANAGED));
        match (transaction.finish().progress, outcome) {
            (Progress::Until(next), Err(error)) if next == batch.from => {
                Err(DirtyError::Prot(error))
            }
            (Progress::Until(next), _) => Ok(next),
            (Progress::Done, _) => Ok(end),
        }
    }

    /// Collapses what logging has split, in the spans that end in a batch. Returns how many tables became blocks, and how
    /// many stay.
    fn collapse_back(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        session: &Session,
        (from, until): (Ipa, Ipa),
        relax: &mut impl FnMut(),
    ) -> Result<(u64, u64), DirtyError> {
        let (mut collapsed, mut stay) = (0, 0);
        let mut heard = |_, what| match what {
            Collapse::Made => collapsed += 1,
            Collapse::Stays(_) => stay += 1,
        };
        let mut at = from.align_down(SPAN).get();
        while at + SPAN <= until.get() {
            let start = at;
            while at + SPAN <= until.get()
                && Ipa::new(at) >= session.range.start()
                && session.take_split(Ipa::new(at))
            {
                at += SPAN;
            }
            let mut next = Ipa::new(start);
            while next.get() < at {
                let slots = ((at - next.get()) / SPAN) as usize * ARITY;
                let batch = Batch { from: next, slots };
                let progress = self
                    .collapse(cpu, claim, batch, Level::L2, &mut *relax, &mut heard)
                    .map_err(DirtyError::Collapse)?;
                next = match progress {
                    Progress::Done => Ipa::new(at),
                    Progress::Until(next) => next,
                };
            }
            at = at.max(start + SPAN);
        }
        Ok((collapsed, stay))
    }
}
