//! Installs and lookups, and the other PE that is faster.

use std::sync::Mutex;

use mmu_oracle::Event;
use stage2::descriptor::Note;
use stage2::space::MappingError;
use stage2::{Descriptor, Encoding, Install, InstallError, Ipa, Pa, Tally, View};

use super::{DEAD, Ground, Rival, VmSpace, World, level};
use crate::descriptors::says_the_same;
use crate::format::{self, Kind, Meaning};
use crate::memory::{Count, Source};
use crate::program::{self, PES, Place, Size, Who};
use crate::reference::{Expected, Leaf};

/// One install that was tried.
pub(super) struct Tried {
    pub(super) size: Size,
    pub(super) kind: program::Kind,
    pub(super) result: Result<Install, InstallError>,
    tally: Tally,
    taken: Vec<Pa>,
    returned: Vec<Pa>,
}

/// An install that is wanted.
#[derive(Clone, Copy)]
struct Wanted {
    pe: usize,
    ipa: u64,
    size: Size,
    kind: program::Kind,
}

impl<'m> World<'m> {
    /// Populates, as a fault handler does.
    pub(super) fn install(&mut self, who: Who, at: Place, size: Size, kind: program::Kind) {
        let Some(vm) = self.vm(who) else { return };
        let ipa = self.ipa(at);
        let too_high = (size.level() as usize) < self.start_level();
        let made = self.vms[&vm].space.mapping(size.level(), &kind.attributes(), kind.owner());
        match made {
            Err(MappingError::Level { .. }) => assert!(too_high),
            Err(error) => panic!("{error}"),
            Ok(_) => {
                assert!(!too_high);
                let before = self.ground.store.count();
                let wanted = Wanted { pe: who.pe(), ipa, size, kind };
                let (tried, raced) = self.against_rival(who, vm, ipa, kind, |world| {
                    world.ground.install(&world.vms[&vm].space, wanted)
                });
                self.books_balance(before, &tried, raced.as_ref());
                if let Some(rival) = raced {
                    self.judge(vm, ipa, &rival, before, true);
                }
                self.judge(vm, ipa, &tried, before, false);
            }
        }
    }

    /// Runs `work` on this PE; where the program says so, another PE installs at `ipa` meanwhile.
    pub(super) fn against_rival<T>(
        &mut self,
        who: Who,
        vm: usize,
        ipa: u64,
        kind: program::Kind,
        work: impl FnOnce(&Self) -> T,
    ) -> (T, Option<Tried>) {
        let Some(Rival { n, size }) = self.rival.take() else {
            return (work(self), None);
        };
        let world = &*self;
        // A level that the VM's walks do not reach is no level to race at.
        let size = if (size.level() as usize) < world.start_level() { Size::Block2M } else { size };
        let wanted = Wanted { pe: (who.pe() + 1) % PES, ipa, size, kind };
        let (outcome, ground, space) = (Mutex::new(None), world.ground, &world.vms[&vm].space);
        let race = || {
            let tried = ground.install(space, wanted);
            *outcome.lock().expect("one thread") = Some(tried);
        };
        let (result, raced) = world.ground.machine.race_at(n, race, || work(world));
        let tried = outcome.into_inner().expect("one thread");
        assert_eq!(raced, tried.is_some());
        self.report.raced |= raced;
        (result, tried)
    }

    /// As [`against_rival`](Self::against_rival), for operations that are no install: the rival is judged here.
    pub(super) fn beside_rival<T>(
        &mut self,
        who: Who,
        vm: usize,
        ipa: u64,
        work: impl FnOnce(&Self) -> T,
    ) -> T {
        let before = self.ground.store.count();
        let (result, raced) = self.against_rival(who, vm, ipa, program::Kind(0), work);
        if let Some(rival) = raced {
            self.judge(vm, ipa, &rival, before, true);
        }
        result
    }

    /// Pages went where the tallies say.
    fn books_balance(&mut self, before: Count, tried: &Tried, rival: Option<&Tried>) {
        let after = self.ground.store.count();
        let all: Vec<&Tried> = [tried].into_iter().chain(rival).collect();
        let sum =
            |count: fn(&Tally) -> u64| all.iter().map(|t| count(&t.tally) as usize).sum::<usize>();
        assert_eq!(after.tables - before.tables, sum(|t| t.tables), "tables linked");
        assert_eq!(after.tables_freed - before.tables_freed, sum(|t| t.lost_tables));
        assert_eq!(after.frames - before.frames, sum(|t| t.installed), "frames mapped");
        for one in &all {
            assert_eq!(one.returned.len(), one.tally.lost_races as usize);
            assert_eq!(one.taken.len() - one.returned.len(), one.tally.installed as usize);
        }
        let lost = sum(|t| t.lost_races) + sum(|t| t.lost_tables);
        assert!(rival.is_some() || lost == 0, "a race was lost to nobody");
        self.report.lost += lost;
    }

    /// What an install answered is what the reference expects.
    fn judge(&mut self, vm: usize, ipa: u64, tried: &Tried, before: Count, raced: bool) {
        let (start, refused) =
            (self.start_level(), self.ground.store.count().refused > before.refused);
        let wanted = tried.size.level() as usize;
        let encoding = self.encoding();
        let state = self.vms.get_mut(&vm).expect("checked");
        let expected = state.reference.expected(ipa, start);
        let obstacle =
            |at: usize, bits: u64| expected == Expected::Obstacle(at, bits) && at <= wanted;
        assert_eq!(
            u64::from(tried.result.is_ok_and(|ok| matches!(ok, Install::Installed(_)))),
            tried.tally.installed
        );
        match tried.result {
            Ok(Install::Installed(frame)) => {
                assert_eq!(tried.taken, [frame]);
                assert_eq!(expected, Expected::Nothing);
                let (attributes, owner) = (tried.kind.attributes(), tried.kind.owner());
                state.reference.add(ipa, Leaf { level: wanted, frame, attributes, owner });
                self.report.installed += 1;
            }
            Ok(Install::Present(leaf)) => match expected {
                Expected::Leaf(_, there) => {
                    assert_eq!((leaf.pa(), leaf.level()), (there.frame, level(there.level)));
                    assert_eq!((leaf.owner(), there.level <= wanted), (there.owner, true));
                    let encoding = Encoding { fwb: encoding.fwb, xnx: encoding.xnx };
                    assert_eq!(leaf.attributes(encoding), Some(there.attributes));
                }
                other => panic!("a leaf where {other:?} was expected"),
            },
            Err(InstallError::BeyondIpaSize { .. }) => assert_ne!(ipa >> self.setup.ipa_bits(), 0),
            Err(InstallError::Retry { level, seen }) => {
                // A rival may meet slots that were made Dead a moment ago.
                let dying = raced && seen == Descriptor::from_bits(DEAD);
                assert!(dying || obstacle(level as usize, seen.bits()), "{level}: {seen:?}");
                assert!(Note::new(seen.bits() >> 4).is_none() || seen.bits() & 0xf != 0b0100);
            }
            Err(InstallError::Note { level, note }) => {
                assert!(
                    obstacle(level as usize, Descriptor::note(note).bits()),
                    "{level}: {note:?}"
                );
            }
            Err(InstallError::Occupied { level, seen }) => {
                let there = state.tables.walk(ipa, wanted).expect("inside the IPA size");
                // What raced it may have changed the slot since.
                assert!(raced || (there.level, there.bits) == (wanted, seen.bits()));
                assert_eq!(
                    (level as usize, format::kind(seen.bits(), wanted)),
                    (wanted, Kind::Table)
                );
            }
            Err(InstallError::OutOfFrames | InstallError::OutOfTables) => {
                assert!(refused, "memory was at hand");
                assert_eq!(expected, Expected::Nothing);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A lockless look finds what the reference expects, and what the independent walk finds.
    pub(super) fn lookup(&mut self, who: Who, at: Place) {
        let Some(vm) = self.vm(who) else { return };
        self.look(who.pe(), vm, self.ipa(at));
    }

    pub(super) fn look(&self, pe: usize, vm: usize, ipa: u64) {
        let (state, start) = (&self.vms[&vm], self.start_level());
        let found = self.ground.machine.on_pe(pe, || {
            let cpu = self.ground.epochs.join(pe).expect("each PE joins once at a time");
            state.space.lookup(&cpu.enter(), Ipa::new(ipa))
        });
        let stop = state.tables.walk(ipa, 3);
        assert_eq!(
            found.map(|f| (f.level as usize, f.descriptor.bits())),
            stop.map(|s| (s.level, s.bits))
        );
        let Some((found, stop)) = found.zip(stop) else {
            assert_ne!(ipa >> self.setup.ipa_bits(), 0);
            return;
        };
        match (state.reference.expected(ipa, start), found.view()) {
            (Expected::Leaf(from, leaf), View::Leaf(_)) => {
                assert_eq!((from, leaf.level), (stop.start, stop.level));
                assert!(state.same(ipa, &leaf, self.encoding()));
            }
            (
                Expected::Obstacle(at, bits),
                View::Busy(_) | View::Drain(_) | View::Dead | View::Note(_),
            ) => {
                assert_eq!((at, bits), (stop.level, stop.bits));
            }
            (Expected::Nothing, View::Empty) => {}
            (expected, view) => panic!("{ipa:#x}: {view:?} where {expected:?} was expected"),
        }
    }
}

impl<'m> Ground<'m> {
    fn install(self, space: &VmSpace<'m>, wanted: Wanted) -> Tried {
        let Wanted { pe, ipa, size, kind } = wanted;
        let mapping = space.mapping(size.level(), &kind.attributes(), kind.owner());
        let mapping = mapping.expect("a level that walks reach");
        let mut source = Source::new(self.store, size.level());
        let mut tally = Tally::default();
        let result = self.machine.on_pe(pe, || {
            let cpu = self.epochs.join(pe).expect("each PE joins once at a time");
            let result =
                space.install(&cpu.enter(), Ipa::new(ipa), &mapping, &mut source, &mut tally);
            if tally.installed + tally.tables != 0 {
                // What was linked or mapped is there for every walk, however the install ended.
                self.machine.note(|pe| Event::Published { pe });
            }
            result
        });
        let Source { taken, returned, .. } = source;
        Tried { size, kind, result, tally, taken, returned }
    }
}

impl super::Vm<'_> {
    /// Whether hardware reads at `ipa` what the reference has there, in every field.
    pub(super) fn same(&self, ipa: u64, leaf: &Leaf, encoding: format::Machine) -> bool {
        let Some((stop, read)) = self.tables.translate(ipa) else { return false };
        let Meaning::Leaf(again) = format::read(stop.bits, stop.level, encoding) else {
            return false;
        };
        assert_eq!(read, again);
        says_the_same(&leaf.attributes, &read);
        stop.level == leaf.level
            && read.address == leaf.frame.get()
            && (stop.bits >> 57 & 1 == 1) == (leaf.owner == stage2::Owner::Other)
    }
}
