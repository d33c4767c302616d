//! Hardware that does what it may, when it likes: reproducibly, by a seed.

use super::{Access, Choice, Outcome, Walk, store_by_held};
use crate::event::Pe;
use crate::machine::OracleMachine;

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Walks that ended as the tables say.
    pub done: usize,
    /// Walks that found the leaf changed, or were ended by an invalidation.
    pub again: usize,
    /// Stores through an entry that was held, while the descriptor said something else or not.
    pub by_held: usize,
    /// Stores before their record.
    pub stored_first: usize,
    /// Access flags that were not set.
    pub access_lost: usize,
    /// Records that were lost.
    pub dirty_lost: usize,
    /// Records that were invented.
    pub dirty_invented: usize,
}

/// Guests on some PEs that touch some pages, and the hardware beneath them.
#[derive(Debug)]
pub struct Hardware<'m> {
    machine: &'m OracleMachine,
    pes: Vec<Pe>,
    ipas: Vec<u64>,
    state: u64,
    flying: Vec<(u64, Walk<'m>)>,
    counts: Counts,
    written: std::collections::BTreeSet<u64>,
}

impl<'m> Hardware<'m> {
    /// Guests on `pes`, which touch `ipas`. They act only when asked to, by [`act`](Self::act).
    ///
    /// # Panics
    /// If there is no PE, or no IPA.
    #[must_use]
    pub fn new(machine: &'m OracleMachine, seed: u64, pes: &[Pe], ipas: &[u64]) -> Self {
        assert!(!pes.is_empty() && !ipas.is_empty(), "somebody touches something");
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            machine,
            pes: pes.to_vec(),
            ipas: ipas.to_vec(),
            state,
            flying: Vec::new(),
            counts: Counts::default(),
            written: std::collections::BTreeSet::new(),
        }
    }

    /// Does one thing that is permitted now, or nothing.
    pub fn act(&mut self) {
        let pe = self.pick(self.pes.len());
        let (pe, ipa) = (self.pes[pe], self.pick(self.ipas.len()));
        let ipa = self.ipas[ipa];
        match self.pick(8) {
            0..3 => {
                let access = [Access::Read, Access::Write, Access::Speculative][self.pick(3)];
                self.flying.extend(Walk::begin(self.machine, pe, ipa, access).map(|w| (ipa, w)));
            }
            3..5 if !self.flying.is_empty() => {
                let at = self.pick(self.flying.len());
                let (ipa, walk) = self.flying.swap_remove(at);
                self.land(ipa, walk);
            }
            5 => {
                let stored = store_by_held(self.machine, pe, ipa).is_some();
                self.counts.by_held += usize::from(stored);
                self.written.extend(stored.then_some(ipa));
            }
            #[cfg(not(loom))]
            6 => {
                let walk = Walk::begin(self.machine, pe, ipa, Access::Write);
                if walk.is_ok_and(Walk::store_first) {
                    self.counts.stored_first += 1;
                    self.written.insert(ipa);
                }
            }
            _ => {}
        }
    }

    /// Ends what is in flight: the guests stop.
    pub fn stop(&mut self) {
        for (ipa, walk) in core::mem::take(&mut self.flying) {
            self.land(ipa, walk);
        }
    }

    /// What happened so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Pages that guests really wrote.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.written.iter().copied()
    }

    fn land(&mut self, ipa: u64, walk: Walk<'m>) {
        let choices =
            [Choice::Faithful, Choice::LoseAccess, Choice::LoseDirty, Choice::InventDirty];
        let choice = choices[self.pick(choices.len())];
        let write = walk.access == Access::Write;
        match walk.finish(choice) {
            Outcome::Done(_) => {
                self.counts.done += 1;
                if write {
                    self.written.insert(ipa);
                }
            }
            Outcome::Again => self.counts.again += 1,
            Outcome::AccessLost => self.counts.access_lost += 1,
            Outcome::DirtyLost => {
                self.counts.dirty_lost += 1;
                self.written.insert(ipa);
            }
            Outcome::DirtyInvented => self.counts.dirty_invented += 1,
        }
    }

    /// A number below `end`: xorshift64*.
    fn pick(&mut self, end: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        ((self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end as u64) as usize
    }
}
