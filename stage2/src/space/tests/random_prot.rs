//! Random programs of changes of protections, beside an ordered map that says what each leaf must hold: whatever the
//! engine, the batches, and where ranges cut blocks, what comes before an obstacle is changed, and nothing else.

use super::prot::{ACCESSED, DIRTY as WRITABLE, DIRTY_MODIFIER, ENGINES, GIB, MIB2, vm_with};
use super::unmap::{Vm, range};
use super::*;
use crate::descriptor::Change;
use crate::space::{Batch, Progress, ProtError, Relax, Taken};

const EXECUTE_NEVER: u64 = 0b10 << 53;
/// Pages of the window: two tables of pages, then two blocks, then a table.
const WINDOW: u64 = 5 * 512;

#[derive(Clone, Copy, Debug)]
enum Op {
    Protect(Prot),
    WriteProtect,
    Take(Taken),
    Unmanage,
    /// What a guest does, by hardware or by a fault: to every so-manieth leaf.
    Touch {
        every: u64,
        write: bool,
    },
}

/// Where, in pages; slots of a batch; and the engine.
#[derive(Clone, Copy, Debug)]
struct How {
    first: u64,
    count: u64,
    slots: usize,
    engine: usize,
    relax: Relax,
}

fn steps() -> impl Strategy<Value = Vec<(Op, How)>> {
    let prots = prop_oneof![Just(Prot::RO), Just(Prot::RW), Just(Prot::RX), Just(Prot::RWX)];
    let op = prop_oneof![
        2 => prots.prop_map(Op::Protect),
        1 => Just(Op::WriteProtect),
        3 => prop_oneof![Just(Taken::Dirty), Just(Taken::Accessed)].prop_map(Op::Take),
        1 => Just(Op::Unmanage),
        3 => (1..70_u64, any::<bool>()).prop_map(|(every, write)| Op::Touch { every, write }),
    ];
    let edges = prop_oneof![0..WINDOW, (0..5_u64).prop_map(|n| n * 512)];
    let counts = prop_oneof![1..600_u64, (1..5_u64).prop_map(|n| n * 512), Just(WINDOW)];
    let slots = prop_oneof![1..600_usize, Just(usize::MAX)];
    let relax = prop_oneof![Just(Relax::Everywhere), Just(Relax::Here)];
    let how = (edges, counts, slots, 0..3_usize, relax).prop_map(
        |(first, count, slots, engine, relax)| {
            let count = count.min(WINDOW - first);
            How { first, count, slots, engine, relax }
        },
    );
    prop::collection::vec((op, how), 1..24)
}

/// What a leaf holds after a change, and whether that has taken a record from it.
fn after(op: Op, bits: u64) -> (u64, bool) {
    let managed = bits & DIRTY_MODIFIER != 0;
    match op {
        Op::Protect(prot) => {
            let execute = if prot.contains(Prot::EXEC) { 0 } else { EXECUTE_NEVER };
            let write = match (prot.contains(Prot::WRITE), managed) {
                (true, true) => bits & (WRITABLE | DIRTY_MODIFIER),
                (true, false) => WRITABLE,
                (false, _) => 0,
            };
            (bits & !(WRITABLE | DIRTY_MODIFIER | EXECUTE_NEVER) | write | execute, false)
        }
        Op::WriteProtect => (bits & !(WRITABLE | DIRTY_MODIFIER), false),
        Op::Take(Taken::Dirty) if bits & WRITABLE != 0 => (bits & !WRITABLE | DIRTY_MODIFIER, true),
        Op::Take(Taken::Accessed) if bits & ACCESSED != 0 => (bits & !ACCESSED, true),
        Op::Unmanage if managed => (bits & !DIRTY_MODIFIER | WRITABLE, false),
        Op::Take(_) | Op::Unmanage | Op::Touch { .. } => (bits, false),
    }
}

/// Leaves by first IPA: level, and what the slot holds.
type Reference = BTreeMap<u64, (Level, u64)>;

/// What the program's step must come to: records that are taken, and the block in the way.
fn expected(op: Op, at: IpaRange, leaves: &mut Reference) -> (Vec<(u64, Level)>, Option<Ipa>) {
    let mut taken = Vec::new();
    let first = leaves.range(..=at.start().get()).next_back().map_or(0, |(ipa, _)| *ipa);
    for (ipa, (level, bits)) in leaves.range_mut(first..at.end().get()) {
        let end = ipa + level.slot_bytes();
        if end <= at.start().get() {
            continue;
        }
        if *ipa < at.start().get() || end > at.end().get() {
            return (taken, Some(Ipa::new(*ipa)));
        }
        let (now, reported) = after(op, *bits);
        *bits = now;
        if reported {
            taken.push((*ipa, *level));
        }
    }
    (taken, None)
}

/// Runs one step in batches. Returns the records that it told of, and the block in its way.
fn run(vm: &Vm<'_>, op: Op, how: How, at: IpaRange) -> (Vec<(u64, Level)>, Option<Ipa>) {
    vm.space.pin_engine(Some(ENGINES[how.engine]));
    let (mut claim, mut from, mut told) = (vm.space.claim(at).unwrap(), at.start(), Vec::new());
    loop {
        let batch = Batch { from, slots: how.slots };
        let done = match op {
            Op::Protect(prot) => vm.space.protect(&vm.cpu, &mut claim, batch, prot, how.relax),
            Op::WriteProtect => vm.space.write_protect(&vm.cpu, &mut claim, batch),
            Op::Take(what) => transact(vm, &mut claim, batch, how.relax, |open| {
                open.take(what, |first, level, slots| {
                    let set = (0..64).filter(|n| slots & 1 << n != 0);
                    told.extend(set.map(|n| (first.get() + n * level.slot_bytes(), level)));
                })
            }),
            _ => transact(vm, &mut claim, batch, how.relax, |open| {
                open.each(|_, _| Some(Change::UNMANAGED))
            }),
        };
        assert!(vm.cpu.is_quiescent(), "every lock and guard is given back");
        match done {
            Ok(Progress::Done) => return (told, None),
            Ok(Progress::Until(next)) => {
                assert!(from < next && next < at.end(), "a batch makes progress");
                from = next;
            }
            Err(ProtError::Straddles { ipa, level: Level::L2 }) => return (told, Some(ipa)),
            Err(error) => panic!("{error}"),
        }
    }
}

type Tx<'t, 'p> = crate::space::Transaction<'t, &'p Pages, Host>;

/// One batch, as `protect` does it.
fn transact<'p>(
    vm: &Vm<'p>,
    claim: &mut crate::Claim<'_>,
    batch: Batch,
    relax: Relax,
    work: impl FnOnce(&mut Tx<'_, 'p>) -> Result<(), ProtError>,
) -> Result<Progress, ProtError> {
    let guard = vm.cpu.enter();
    let mut open = vm.space.modify_prot(&guard, claim, batch, relax)?;
    let outcome = work(&mut open);
    match (outcome, open.finish().progress) {
        (Err(error), Progress::Until(at)) if at == batch.from => Err(error),
        (_, progress) => Ok(progress),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_random_program_changes_what_it_says_and_tells_of_what_it_takes(
        steps in steps(),
        hw_update in prop_oneof![Just(HwUpdate::Off), Just(HwUpdate::AccessAndDirty)],
        holes in prop::collection::vec(0..1024_u64, 0..9),
        wild in prop::collection::vec(0..1024_u64, 0..9),
    ) {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        vm.lay(range(GIB, 2 * MIB2), Level::L3);
        vm.lay(range(GIB + 2 * MIB2, 2 * MIB2), Level::L2);
        vm.lay(range(GIB + 4 * MIB2, MIB2), Level::L3);
        holes.iter().for_each(|hole| vm.put(GIB + (hole << 12), Descriptor::EMPTY));
        let scratch = super::scratch::scratch(&vm.space).descriptor();
        wild.iter().for_each(|page| vm.put(GIB + (page << 12), scratch));
        let holes: Vec<u64> = holes.into_iter().filter(|hole| !wild.contains(hole)).collect();
        let level = |page: u64| if (1024..2048).contains(&page) { Level::L2 } else { Level::L3 };
        let slots = (0..1024).chain([1024, 1536]).chain(2048..2560);
        let held = slots.map(|page: u64| GIB + (page << 12)).map(|ipa| (ipa, vm.held(ipa)));
        let mut leaves: Reference = held
            .filter(|(_, bits)| *bits != 0 && *bits != scratch.bits())
            .map(|(ipa, bits)| (ipa, (level((ipa - GIB) >> 12), bits)))
            .collect();
        for (op, how) in steps {
            let at = range(GIB + (how.first << 12), how.count << 12);
            if let Op::Touch { every, write } = op {
                let touched = |ipa: &u64| (ipa >> 12).is_multiple_of(every);
                for (ipa, (_, bits)) in leaves.iter_mut().filter(|(ipa, _)| touched(ipa)) {
                    let may = *bits & (WRITABLE | DIRTY_MODIFIER) != 0;
                    *bits |= ACCESSED | if write && may { WRITABLE } else { 0 };
                    vm.put(*ipa, Descriptor::from_bits(*bits));
                }
                continue;
            }
            let wanted = expected(op, at, &mut leaves);
            assert_eq!(run(&vm, op, how, at), wanted, "{op:?}, {how:?}");
            for (ipa, (_, bits)) in &leaves {
                assert_eq!(vm.held(*ipa), *bits, "{op:?}, {how:?}: {ipa:#x}");
            }
            assert!(holes.iter().all(|hole| vm.held(GIB + (hole << 12)) == 0), "a hole is filled");
            let scratch = |page: &u64| vm.held(GIB + (page << 12)) == scratch.bits();
            assert!(wild.iter().all(scratch), "{op:?}, {how:?}: scratch has changed");
        }
    }
}
