//! Operations on ranges: `map`, `unmap`, `annotate`, `deannotate`, in batches, by one PE or by several in turn, with
//! another PE's install in between.
//!
//! What each must come to is said by the reference: which leaves appear and which go, at which slot it stops and why.
//! The tables are compared with the reference at the end; here it is what was answered, which memory came back, and
//! that no table is left empty where it could be given back, or goes where it could not.

use std::collections::BTreeMap;

use stage2::epoch::Cpu;
use stage2::space::{Batch, Progress};
use stage2::{Claim, Install, InstallError, Ipa, IpaRange, View};

use super::World;
use super::install::Tried;
use crate::format::{self, Kind};
use crate::memory::Count;
use crate::program::{self, PES, Pace, Place, Reach, Who};
use crate::reference::{Leaf, Reference};
use crate::walk::span;

/// An operation on a range: whose, where, how.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) who: Who,
    pub(super) vm: usize,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) pace: Pace,
}

/// How things stood before an operation.
pub(super) struct Before {
    pub(super) reference: Reference,
    pub(super) books: Count,
    /// Tables by level and first IPA, and whether there is anything in them.
    pub(super) tables: BTreeMap<(usize, u64), bool>,
    /// Every table and every slot.
    pub(super) tree: (BTreeMap<u64, usize>, BTreeMap<(u64, usize), u64>),
}

/// How far the batches of an operation came: all before `until` is done.
pub(super) struct Came<E> {
    pub(super) until: u64,
    pub(super) error: Option<E>,
}

impl Range {
    fn ipas(&self) -> IpaRange {
        IpaRange::new(Ipa::new(self.start), self.end - self.start).expect("whole pages")
    }

    /// Whether a slot of `level` at `ipa` lies in it.
    pub(super) fn holds(&self, ipa: u64, level: usize) -> bool {
        self.start <= ipa && ipa + span(level) <= self.end
    }
}

impl<'m> World<'m> {
    /// The range that an operation is about, if it is one of the VM's; what was left in transition there is finished.
    pub(super) fn range(&mut self, who: Who, at: Place, reach: Reach, pace: Pace) -> Option<Range> {
        let vm = self.vm(who)?;
        let (start, bytes) = reach.range(Ipa::new(self.ipa(at)));
        if start + bytes > 1 << self.setup.ipa_bits() {
            return None;
        }
        let range = Range { who, vm, start, end: start + bytes, pace };
        let state = &self.vms[&vm];
        let meets = |ipa: u64, level: usize| ipa < range.end && range.start < ipa + span(level);
        let owed = state.owed.iter().any(|owed| meets(owed.start, owed.leaf.level));
        if owed || state.held.iter().any(|held| meets(held.start, held.level)) {
            self.finish_all(vm);
        }
        Some(range)
    }

    pub(super) fn before(&self, vm: usize) -> Before {
        let state = &self.vms[&vm];
        let (tables, tree) = (state.tables.linked(), state.tables.all());
        let (reference, books) = (state.reference.clone(), self.ground.store.count());
        Before { reference, books, tables, tree }
    }

    /// Runs the batches of an operation, while the rival of this step installs at the range's first address.
    pub(super) fn batches<E: Copy>(
        &mut self,
        range: Range,
        kind: program::Kind,
        mut batch: impl FnMut(&Self, &Cpu<'_>, &mut Claim<'_>, Batch) -> Result<Progress, E>,
    ) -> (Came<E>, Option<Tried>) {
        let Range { who, vm, start, end, pace } = range;
        self.against_rival(who, vm, start, kind, |world| {
            let mut claim = world.vms[&vm].space.claim(range.ipas()).expect("nobody else is here");
            let (mut from, mut pe) = (start, who.pe());
            loop {
                let done = world.ground.machine.on_pe(pe, || {
                    let cpu = world.ground.epochs.join(pe).expect("each PE joins once at a time");
                    let slots = Batch { from: Ipa::new(from), slots: pace.slots() };
                    let done = batch(world, &cpu, &mut claim, slots);
                    assert!(cpu.is_quiescent(), "a batch gives back its guards and locks");
                    done
                });
                match done {
                    Ok(Progress::Done) => return Came { until: end, error: None },
                    Ok(Progress::Until(next)) => {
                        assert!(from < next.get() && next.get() < end, "a batch makes progress");
                        from = next.get();
                    }
                    Err(error) => return Came { until: from, error: Some(error) },
                }
                if pace.relay() {
                    // In turn with the PE that is not the rival.
                    pe = if pe == who.pe() { (pe + 2) % PES } else { who.pe() };
                }
            }
        })
    }

    /// What the rival of an operation on a range met is what stood there before, in between or after. Where it
    /// mapped something, if it did; the reference has it then.
    pub(super) fn judge_beside(
        &mut self,
        range: Range,
        tried: &Tried,
        before: &Before,
    ) -> Option<u64> {
        let (ipa, wanted) = (range.start, tried.size.level() as usize);
        let refused = self.ground.store.count().refused > before.books.refused;
        let state = self.vms.get_mut(&range.vm).expect("checked");
        match tried.result {
            Ok(Install::Installed(frame)) => {
                let (attributes, owner) = (tried.kind.attributes(), tried.kind.owner());
                state.reference.add(ipa, Leaf { level: wanted, frame, attributes, owner });
                self.report.installed += 1;
                return Some(crate::walk::base(ipa, wanted));
            }
            Ok(Install::Present(leaf)) => {
                let same = |there: Option<(u64, Leaf)>| {
                    there.is_some_and(|(_, there)| {
                        (there.frame, there.at()) == (leaf.pa(), leaf.level())
                    })
                };
                assert!(
                    same(before.reference.leaf(ipa)) || same(state.reference.leaf(ipa)),
                    "{leaf:?}"
                );
            }
            Err(InstallError::Retry { level, seen }) => {
                let view = seen.view(level);
                assert!(matches!(view, View::Busy(_) | View::Drain(_) | View::Dead), "{seen:?}");
            }
            // Its own, or one of an annotate that was refused further on.
            Err(InstallError::Note { .. }) => {}
            Err(InstallError::Occupied { level, seen }) => {
                assert_eq!(
                    (level as usize, format::kind(seen.bits(), wanted)),
                    (wanted, Kind::Table)
                );
            }
            Err(InstallError::OutOfFrames | InstallError::OutOfTables) => {
                assert!(refused, "memory was at hand");
            }
            Err(error) => panic!("{error}"),
        }
        None
    }
}
