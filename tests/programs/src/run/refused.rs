//! Wrong calls: each gets its typed error, with the numbers, and nothing changes.

use stage2::claim::MAX_CLAIMS;
use stage2::space::{Batch, Extent, MapError, MappingError, NotClaimed, Notes, Progress, Release};
use stage2::{
    Attributes, Claim, ClaimError, Epochs, Flushed, Former, Ipa, IpaRange, MemType, Note, Owner,
    Pa, Prot, UnmapError, Write,
};

use super::{VmSpace, World};
use crate::program::{Pace, Place, Reach, Who, Wrong};

/// Nothing comes back of what was refused.
struct Nothing;

impl Release for Nothing {
    fn frame(&mut self, ipa: Ipa, _: &Former, _: &Flushed) {
        panic!("{ipa} came back");
    }
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Map(MapError),
    Unmap(UnmapError),
}

/// Tries each operation on a range with this claim; all must be refused. Why, in the order map, annotate, unmap,
/// deannotate.
fn all_four(
    space: &VmSpace<'_>,
    cpu: &stage2::epoch::Cpu<'_>,
    claim: &mut Claim<'_>,
    from: u64,
    extent: &Extent,
) -> [Option<Refusal>; 4] {
    let batch = Batch { from: Ipa::new(from), slots: 3 };
    let map = |done: Result<Progress, MapError>| done.err().map(Refusal::Map);
    let unmap = |done: Result<Progress, UnmapError>| done.err().map(Refusal::Unmap);
    let note = Note::new(1).expect("small");
    [
        // SAFETY: (1, 2) it is refused.
        map(unsafe { space.map(cpu, claim, batch, extent) }),
        map(space.annotate(cpu, claim, batch, note)),
        unmap(space.unmap(cpu, claim, batch, Notes::Remove, || {}, &mut Nothing)),
        unmap(space.deannotate(cpu, claim, batch, |ipa, _, _| panic!("{ipa} was noted"))),
    ]
}

/// All four say the same of the claim.
fn not_claimed(error: NotClaimed) -> [Option<Refusal>; 4] {
    let (map, unmap) =
        (Refusal::Map(MapError::Claim(error)), Refusal::Unmap(UnmapError::Claim(error)));
    [Some(map), Some(map), Some(unmap), Some(unmap)]
}

impl World<'_> {
    /// A call that is wrong.
    pub(super) fn refused(&mut self, who: Who, at: Place, reach: Reach, wrong: Wrong) {
        let Some(range) = self.range(who, at, reach, Pace(0)) else { return };
        let state = &self.vms[&range.vm];
        let before = (state.tables.all(), self.ground.store.count());
        let ipas = IpaRange::new(Ipa::new(range.start), range.end - range.start);
        let ipas = ipas.expect("whole pages");
        self.ground.machine.on_pe(who.pe(), || self.call_wrongly(who, range.vm, ipas, wrong));
        let after = (self.vms[&range.vm].tables.all(), self.ground.store.count());
        assert_eq!(before, after, "{wrong:?} changed something");
        self.report.refused += 1;
    }

    fn call_wrongly(&self, who: Who, vm: usize, ipas: IpaRange, wrong: Wrong) {
        let (space, bits) = (&*self.vms[&vm].space, self.setup.ipa_bits());
        let (start, bytes) = (ipas.start().get(), ipas.bytes());
        let cpu = self.ground.epochs.join(who.pe()).expect("each PE joins once at a time");
        let attributes = Attributes::new(Prot::RWX, MemType::Normal);
        let good = Extent {
            pa: Pa::new(1 << 41),
            attributes,
            owner: Owner::Vm,
            coarsest: stage2::Level::L3,
        };
        let mut claim = space.claim(ipas).expect("nobody else is here");
        let try_all = |claim: &mut Claim<'_>, from| all_four(space, &cpu, claim, from, &good);
        // SAFETY: (1, 2) it is refused.
        let map = |claim: &mut Claim<'_>, extent: &Extent| unsafe {
            space.map(&cpu, claim, Batch { from: ipas.start(), slots: 1 }, extent)
        };
        match wrong {
            Wrong::Range => {
                for (start, bytes) in
                    [(start + 8, bytes), (start, bytes + 8), (start, 0), (u64::MAX - 0xfff, 0x2000)]
                {
                    assert!(
                        IpaRange::new(Ipa::new(start), bytes).is_err(),
                        "{start:#x}, {bytes:#x}"
                    );
                }
            }
            Wrong::BeyondIpaSize => {
                let over = IpaRange::new(ipas.start(), (1 << bits) - start + 4096);
                let wanted = over.expect("whole pages");
                let error = space.claim(wanted).expect_err("beyond the IPA size");
                assert_eq!(error, ClaimError::BeyondIpaSize { wanted, bits });
            }
            Wrong::Overlap => {
                let last = IpaRange::new(Ipa::new(start + bytes - 4096), 4096).expect("a page");
                for wanted in [ipas, last] {
                    let error = space.claim(wanted).expect_err("claimed");
                    assert_eq!(error, ClaimError::Conflict { wanted, held: ipas });
                }
            }
            Wrong::From => {
                for from in [start + bytes, start + 8, start.wrapping_sub(4096)] {
                    let error = NotClaimed::From { from: Ipa::new(from), range: ipas };
                    assert_eq!(try_all(&mut claim, from), not_claimed(error));
                }
            }
            Wrong::ForeignClaim => {
                let Some((_, other)) = self.vms.iter().find(|(other, _)| **other != vm) else {
                    return;
                };
                let mut foreign = other.space.claim(ipas).expect("nobody else is here");
                assert_eq!(try_all(&mut foreign, start), not_claimed(NotClaimed::ForeignClaim));
            }
            Wrong::ForeignCpu => {
                let epochs = Epochs::<1>::new();
                let foreign = epochs.join(0).expect("alone");
                let (map, unmap) = (
                    Some(Refusal::Map(MapError::ForeignGuard)),
                    Some(Refusal::Unmap(UnmapError::ForeignGuard)),
                );
                let all = all_four(space, &foreign, &mut claim, start, &good);
                assert_eq!(all, [map, map, unmap, unmap]);
            }
            Wrong::InsideGuard => {
                let _guard = cpu.enter();
                let batch = Batch::all_of(&claim);
                let done = [
                    space.unmap(&cpu, &mut claim, batch, Notes::Remove, || {}, &mut Nothing),
                    space
                        .deannotate(&cpu, &mut claim, batch, |ipa, _, _| panic!("{ipa} was noted")),
                ];
                assert_eq!(done, [Err(UnmapError::NotQuiescent); 2]);
            }
            Wrong::Memory => {
                for pa in [0x1_0000_0800, (1 << 48) - bytes + 4096, u64::MAX - 0xfff] {
                    let pa = Pa::new(pa);
                    let error = MapError::Pa { pa, bytes, bits: 48 };
                    assert_eq!(map(&mut claim, &Extent { pa, ..good }), Err(error));
                }
            }
            Wrong::Attributes => {
                let attributes = Attributes { contiguous: true, ..attributes };
                let error = MapError::Mapping(MappingError::Contiguous);
                assert_eq!(map(&mut claim, &Extent { attributes, ..good }), Err(error));
                for attributes in [
                    Attributes { accessed: false, ..good.attributes },
                    Attributes { write: Write::Clean, ..good.attributes },
                ] {
                    let others = Extent { attributes, owner: Owner::Other, ..good };
                    let error = MapError::Mapping(MappingError::Unsettled);
                    assert_eq!(map(&mut claim, &others), Err(error));
                }
            }
            Wrong::TooManyClaims => {
                drop(claim);
                // Page by page, from the first page of the VM on.
                let page = |n: u64| IpaRange::new(Ipa::new(n << 12), 4096).expect("a page");
                let held: Vec<_> = (0..MAX_CLAIMS as u64).map(|n| space.claim(page(n))).collect();
                assert!(held.iter().all(Result::is_ok));
                let wanted = page(MAX_CLAIMS as u64);
                let error = space.claim(wanted).expect_err("as many as there can be");
                assert_eq!(error, ClaimError::TooMany { wanted });
            }
        }
    }
}
