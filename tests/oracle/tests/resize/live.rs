//! Splits without a break, by nT and at once. The oracle holds the block beside its pages for as long as the
//! architecture permits, and a writable-clean block may never be among them.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use mmu_oracle::Defect;
use stage2::Memory;
use stage2::space::SplitError;

use super::*;

const LIVE: [Bbm; 2] = [Bbm::Level1, Bbm::Level2];
const ACCESSED: u64 = 1 << 10;
const DIRTY: u64 = 1 << 7;
const CONTIGUOUS: u64 = 1 << 52;
const NO_TRANSLATION: u64 = 1 << 16;

/// Lets hardware go on until a block says that it was accessed and written.
fn settle(space: &ShakenSpace<'_>, cpu: &Cpu<'_>, ipa: u64) {
    let settled = || {
        let bits = space.lookup(&cpu.enter(), Ipa::new(ipa)).unwrap().descriptor.bits();
        bits & (ACCESSED | DIRTY) == ACCESSED | DIRTY
    };
    let steps = (0..10_000).take_while(|_| !settled());
    steps.for_each(|_| space.arch().dsb(Dsb::IshSt));
    assert!(settled(), "guests write there again and again");
}

/// How many blocks have been split while they were live.
fn live(space: &ShakenSpace<'_>) -> u64 {
    space.account().split_live.iter().sum()
}

#[test]
fn live_blocks_change_their_size_under_hardware_updates_and_no_write_is_lost() {
    for bbm in LIVE {
        let (went_live, broken) = (Cell::new(0), Cell::new(0));
        for (seed, caps) in
            (1..=SEEDS).zip([Caps::TLBI_RANGE, Caps::TLBI_RANGE | Caps::TTL].into_iter().cycle())
        {
            let run = run_at(bbm, seed, caps, |space, cpu| {
                back_and_forth(space, cpu);
                settle(space, cpu, BASE);
                back_and_forth(space, cpu);
                went_live.set(went_live.get() + live(space));
                broken.set(broken.get() + space.account().split - live(space));
            });
            let verdicts = run.machine.verdicts();
            assert!(verdicts.is_empty(), "{bbm:?}, {caps:?}, seed {seed}: {}", verdicts[0]);
            assert_eq!(run.missed, [0_u64; 0], "{bbm:?}, seed {seed}: written, and clean");
        }
        println!("{bbm:?}: {} live, {} broken", went_live.get(), broken.get());
        assert!(went_live.get() > 10 && broken.get() > 1, "both ways are taken");
    }
}

/// A machine with both blocks mapped and every guest in it, and who changes them.
struct Rig {
    machine: OracleMachine,
    epochs: Epochs<3>,
    vmids: Vmids<3>,
}

impl Rig {
    /// So many table pages: the root, the blocks' table, and those for parts.
    fn new(bbm: Bbm, tables: usize) -> Self {
        Self { machine: machine(bbm, tables), epochs: Epochs::new(), vmids: vmids() }
    }

    fn space(&self) -> Space<'_, &OracleMachine, &OracleMachine> {
        let bbm = [Bbm::Level0, Bbm::Level1, Bbm::Level2][usize::from(self.machine.setup().bbm)];
        let geometry = geometry(bbm, Caps::TTL | Caps::TLBI_RANGE);
        let (domain, machine) = (self.epochs.domain(), &self.machine);
        let space = Space::new(geometry, &self.vmids, domain, machine, machine).unwrap();
        enter(machine, &self.vmids, &space, 0..3);
        space
    }
}

/// Maps one of the two blocks.
fn map_block(
    space: &Space<'_, &OracleMachine, &OracleMachine>,
    cpu: &Cpu<'_>,
    block: u64,
    write: Write,
) {
    let mut claim = space.claim(range(BASE + block * MIB2, MIB2)).unwrap();
    let attributes = Attributes { write, ..Attributes::new(Prot::RWX, MemType::Normal) };
    let pa = Pa::new(0x8000_0000 + block * MIB2);
    let (all, extent) = (Batch::all_of(&claim), Extent { pa, attributes, ..extent() });
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    assert_eq!(unsafe { space.map(cpu, &mut claim, all, &extent) }, Ok(Progress::Done));
}

#[test]
fn each_step_of_the_flushes_around_a_live_block_is_needed() {
    // A DSB and each TLBI with its DSB: 8 or 3 of the split, and 5 of the collapse.
    for (bbm, steps) in [(Bbm::Level1, 8 + 5), (Bbm::Level2, 3 + 5)] {
        let rig = Rig::new(bbm, 3);
        let (space, cpu) = (rig.space(), rig.epochs.join(0).unwrap());
        map_block(&space, &cpu, 0, Write::Dirty);
        let from = rig.machine.trace().len();
        split(&space, &cpu, range(BASE, MIB2));
        assert_eq!(space.account().split_live.iter().sum::<u64>(), 1);
        assert_eq!(collapse(&space, &cpu, range(BASE, MIB2)), [Collapse::Made]);
        assert!(rig.machine.verdicts().is_empty(), "{bbm:?}: {}", rig.machine.verdicts()[0]);
        assert_eq!(needed(&rig.machine, from), steps, "{bbm:?}");
    }
}

/// In one batch a block that is dirty stays live, and one that is clean is broken, in either order; a flush that
/// spares the live one does not do for the other.
#[test]
fn a_batch_may_be_split_in_two_ways() {
    for bbm in LIVE {
        for writes in [[Write::Dirty, Write::Clean], [Write::Clean, Write::Dirty]] {
            let rig = Rig::new(bbm, 4);
            let (space, cpu) = (rig.space(), rig.epochs.join(0).unwrap());
            (0..).zip(writes).for_each(|(block, write)| map_block(&space, &cpu, block, write));
            split(&space, &cpu, range(BASE, 2 * MIB2));
            let account = space.account();
            let by = (bbm == Bbm::Level2) as usize;
            assert_eq!((account.split, account.split_live[by]), (2, 1), "{bbm:?}, {writes:?}");
            assert_eq!(account.split_live[1 - by], 0, "{bbm:?}");
            // What holds a block still is found out by whoever takes a page away.
            let mut claim = space.claim(range(BASE, 2 * MIB2)).unwrap();
            let all = Batch::all_of(&claim);
            let keep = stage2::space::Notes::Keep;
            let mut freed = Freed(&rig.machine);
            let done = space.unmap(&cpu, &mut claim, all, keep, || {}, &mut freed);
            assert_eq!(done, Ok(Progress::Done));
            rig.machine.finish();
            let verdicts = rig.machine.verdicts();
            assert!(verdicts.is_empty(), "{bbm:?}, {writes:?}: {}", verdicts[0]);
        }
    }
}

/// Memory serves somebody else at once.
struct Freed<'m>(&'m OracleMachine);

impl stage2::space::Release for Freed<'_> {
    fn frame(&mut self, _: Ipa, former: &stage2::Former, _: &stage2::Flushed) {
        let frame = former.pa().get();
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes: 0x1000 });
    }
}

/// What somebody with the lock of the block's table, but no claim, makes of the block before each of the steps.
#[test]
fn a_live_split_notices_what_happens_to_the_block_meanwhile() {
    type Change = fn(u64) -> u64;
    let cases: [(&str, Change); 6] = [
        ("it is accessed and written", |bits| bits | DIRTY | ACCESSED),
        ("it is clean again", |bits| bits & !DIRTY),
        ("nT is taken away", |bits| bits & !NO_TRANSLATION),
        ("it was moved", |bits| bits + MIB2),
        ("it was taken away", |_| 0),
        ("it is a member of a run", |bits| bits | CONTIGUOUS),
    ];
    let steps = [(Bbm::Level1, 1), (Bbm::Level1, 2), (Bbm::Level2, 1)];
    for ((what, change), (bbm, step), write) in cases.iter().flat_map(|case| {
        let at = move |step| [Write::Clean, Write::Dirty].map(|write| (case, step, write));
        steps.into_iter().flat_map(at)
    }) {
        let what = format!("{what}, {bbm:?}, step {step}, {write:?}");
        // One table for parts: it may not be lost.
        let rig = Rig::new(bbm, 3);
        let (space, cpu) = (rig.space(), rig.epochs.join(0).unwrap());
        map_block(&space, &cpu, 0, write);
        let parent = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
        // SAFETY: (1) linked, and nobody frees it.
        let slot = unsafe { rig.machine.table_at(parent.as_table(Level::L1).unwrap()) }.slot(0);
        let other = || {
            rig.machine.on_pe(1, || {
                let bits = change((&rig.machine).load(slot));
                // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
                _ = unsafe { (&rig.machine).swap(slot, bits) };
                (&rig.machine).dsb(Dsb::IshSt);
                bits
            })
        };
        let now = AtomicU64::new(0);
        let race = || now.store(other(), Relaxed);
        let mut claim = space.claim(range(BASE, MIB2)).unwrap();
        let all = Batch::all_of(&claim);
        let (done, met) =
            rig.machine.race_at(step, race, || space.split(&cpu, &mut claim, all, Level::L3));
        drop(claim);
        if !met {
            assert!(step == 2 && write == Write::Clean, "{what}: only what is broken has one step");
            continue;
        }
        let now = now.load(Relaxed) & !NO_TRANSLATION;
        let found = |page| space.lookup(&cpu.enter(), Ipa::new(BASE + page * 0x1000)).unwrap();
        if now & CONTIGUOUS != 0 {
            let refused = Err(SplitError::Contiguous { ipa: Ipa::new(BASE) });
            let expected = if step == 1 { refused } else { Ok(Progress::Done) };
            assert_eq!((done, found(0).level), (expected, Level::L2), "{what}");
        } else if now == 0 {
            assert_eq!((done, found(0).descriptor.bits()), (Ok(Progress::Done), 0), "{what}");
        } else {
            for page in [0, 1, 511] {
                let wanted = (now | 0b10) + page * 0x1000;
                let found = (found(page).level, found(page).descriptor.bits());
                assert_eq!(found, (Level::L3, wanted), "{what}");
            }
            assert_eq!(done, Ok(Progress::Done), "{what}");
        }
        if now == 0 || now & CONTIGUOUS != 0 {
            map_block(&space, &cpu, 1, Write::Dirty);
            let mut claim = space.claim(range(BASE + MIB2, MIB2)).unwrap();
            let all = Batch::all_of(&claim);
            let split = space.split(&cpu, &mut claim, all, Level::L3);
            assert_eq!(split, Ok(Progress::Done), "{what}: the table that was not used came back");
        }
        rig.machine.finish();
        // What the other did to the block without a break is wrong by itself.
        let ours = |defect| {
            matches!(
                defect,
                Defect::LockState
                    | Defect::LockOrder
                    | Defect::ConflictingSize
                    | Defect::StaleTranslation
            )
        };
        let verdicts = rig.machine.verdicts();
        let by_other = now & CONTIGUOUS != 0;
        let wrong = verdicts.iter().find(|verdict| ours(verdict.defect) && !by_other);
        assert!(wrong.is_none(), "{what}: {}", wrong.unwrap());
    }
}

/// The second of three blocks becomes a member of a run just before it is exchanged: the batch ends before it, and the
/// next one says why.
#[test]
fn a_refusal_ends_the_batch_before_the_block() {
    for bbm in [Bbm::Level0, Bbm::Level1, Bbm::Level2] {
        let rig = Rig::new(bbm, 5);
        let (space, cpu) = (rig.space(), rig.epochs.join(0).unwrap());
        (0..3).for_each(|block| map_block(&space, &cpu, block, Write::Dirty));
        let parent = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
        // SAFETY: (1) linked, and nobody frees it.
        let slot = unsafe { rig.machine.table_at(parent.as_table(Level::L1).unwrap()) }.slot(1);
        let other = || {
            rig.machine.on_pe(1, || {
                let bits = (&rig.machine).load(slot) | CONTIGUOUS;
                // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
                _ = unsafe { (&rig.machine).swap(slot, bits) };
            });
        };
        let mut claim = space.claim(range(BASE, 3 * MIB2)).unwrap();
        let all = Batch::all_of(&claim);
        let split = |claim: &mut _, batch| space.split(&cpu, claim, batch, Level::L3);
        let (done, met) = rig.machine.race_at(2, other, || split(&mut claim, all));
        let ipa = Ipa::new(BASE + MIB2);
        assert_eq!((done, met), (Ok(Progress::Until(ipa)), true), "{bbm:?}");
        assert_eq!(space.account().split, 1, "{bbm:?}: one block was split");
        let again = split(&mut claim, Batch { from: ipa, ..all });
        assert_eq!(again, Err(SplitError::Contiguous { ipa }), "{bbm:?}");
        let more = [(); 2].map(|()| (&rig.machine).alloc_table(1).is_some());
        assert_eq!(more, [true; 2], "{bbm:?}: the tables that were not used came back");
    }
}

/// While another CPU splits a block at once, a CPU that meets a conflict gets rid of all that it holds of the VM, and the
/// others keep what they hold.
#[test]
fn after_a_conflict_this_pe_holds_the_block_no_more() {
    let rig = Rig::new(Bbm::Level2, 3);
    let (space, cpu) = (rig.space(), rig.epochs.join(0).unwrap());
    map_block(&space, &cpu, 0, Write::Dirty);
    let machine = &rig.machine;
    let parent = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
    let blocks = parent.as_table(Level::L1).unwrap();
    // SAFETY: (1) linked, and nobody frees it.
    let slot = unsafe { machine.table_at(blocks) }.slot(0);
    let block = machine.load(slot);
    let parts = machine.alloc_table(1).unwrap();
    // SAFETY: (1) just allocated.
    for (slot, page) in unsafe { machine.table_at(parts) }.slots().iter().zip(0..) {
        // SAFETY: (1) nobody walks the table yet; (2) a page of the block.
        unsafe { machine.store_detached(slot, (block | 0b10) + page * 0x1000) };
    }
    let table = stage2::Descriptor::table(Level::L2, parts).unwrap();
    // SAFETY: (1, 2) a test, and the parts of the block.
    _ = unsafe { machine.swap(slot, table.bits()) };
    machine.dsb(Dsb::Ish);
    let holders = || {
        let holds = |pe| machine.with_model(|model| model.holds(pe, blocks.get(), block));
        [0, 1, 2].map(holds)
    };
    assert_eq!(holders(), [true; 3], "the block, beside its pages");
    machine.on_pe(1, || space.tlb().vm_local());
    assert_eq!(holders(), [true, false, true], "who met the conflict holds the block no more");
}
