//! Scratch pages: shown where nothing is, taken away like any leaf, and never the VM's.

mod replace;

use replace::Real;

use super::unmap::{Released, Vm, range};
use super::*;
use crate::descriptor::Leaf;
use crate::space::{
    Batch, NotClaimed, Notes, Progress, ReplaceError, Replaced, Replacements, Scratch, UnmapError,
};

/// Where the scratch page of these VMs lies.
pub(super) const PA: u64 = 0x7000_5000;
const HOLE: u64 = 0x5_0000_0000;

pub(super) fn scratch<A: Arch>(space: &Space<'_, &Pages, A>) -> Scratch {
    // SAFETY: (1, 2) no guest runs; (3) not kept beyond the space.
    unsafe { space.scratch(Pa::new(PA)) }.unwrap()
}

/// Where scratch is in these tests: in three tables, alone, side by side, and at the ends.
const SHOWN_AT: [u64; 8] = [0, 1, 2, 63, 511, 512, 1023, 1024];

impl Vm<'_> {
    /// A wild access.
    pub(super) fn reach(&self, ipa: u64, tally: &mut Tally) -> Result<Install, InstallError> {
        let (scratch, guard) = (scratch(&self.space), self.cpu.enter());
        self.space.install_scratch(&guard, Ipa::new(ipa), &scratch, tally)
    }

    pub(super) fn leaf(&self, ipa: u64) -> Leaf {
        self.slot(ipa).load(&self.space.arch).as_leaf(Level::L3).expect("a page")
    }

    fn remove(&self, what: IpaRange, budget: usize) -> Result<Released, UnmapError> {
        let mut claim = self.space.claim(what).unwrap();
        let (mut released, mut from) = (Released::default(), what.start());
        loop {
            let batch = Batch { from, slots: budget };
            let (scratch, nobody) = (scratch(&self.space), || panic!("nobody to wait for"));
            match self.space.remove_scratch(
                &self.cpu,
                &mut claim,
                batch,
                &scratch,
                nobody,
                &mut released,
            )? {
                Progress::Done => return Ok(released),
                Progress::Until(next) => {
                    assert!(next > from, "a batch makes progress");
                    from = next;
                }
            }
        }
    }

    fn pa(&self, ipa: u64) -> Option<u64> {
        Some(self.space.translate(&self.cpu.enter(), Ipa::new(ipa))?.pa.get())
    }
}

#[test]
fn a_scratch_leaf_is_read_and_written_never_executed_and_has_nothing_to_record() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    for caps in [Caps::empty(), Caps::FWB, Caps::XNX] {
        let features = Features { caps: Caps::GRANULE_4K | caps, ..features(48) };
        let geometry = Geometry::new(40, &features, HwUpdate::Off).unwrap();
        let space = Space::new(geometry, vmids(), epochs.domain(), &pages, Host::new()).unwrap();
        let shown = scratch(&space);
        let leaf = shown.descriptor().as_leaf(Level::L3).unwrap();
        assert_eq!((shown.pa(), leaf.pa()), (Pa::new(PA), Pa::new(PA)));
        assert_eq!(leaf.owner(), Owner::Other);
        let attributes = leaf.attributes(space.encoding()).unwrap();
        assert_eq!(attributes, Attributes::new(Prot::RW, MemType::Normal));
        assert!(attributes.accessed && attributes.write == crate::Write::Allowed);
        let mem = if caps == Caps::FWB { 0b0110 } else { 0b1111 } << 2;
        let bits = 1 << 57 | 1 << 56 | 1 << 54 | PA | 1 << 10 | 0b11 << 8 | 0b11 << 6 | mem | 0b11;
        assert_eq!(leaf.bits(), bits, "bit by bit");
    }
    let space = space(&pages, &epochs, 40);
    // SAFETY: (1, 2) no guest runs; (3) not kept beyond the space.
    let odd = unsafe { space.scratch(Pa::new(PA + 8)) };
    let error = DescriptorError::Address { level: Level::L3, pa: Pa::new(PA + 8) };
    assert_eq!(odd, Err(MappingError::Descriptor(error)));
}

#[test]
fn a_hole_is_filled_once_by_one_exchange_for_each_slot_and_nothing_is_flushed() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    let _ = vm.space.arch.take_log();
    assert_eq!(vm.reach(HOLE + 0x123, &mut tally), Ok(Install::Installed(Pa::new(PA))));
    let won = [Event::CompareExchange(true), Event::Dsb(Dsb::IshSt)];
    assert_eq!(vm.space.arch.take_log(), [won, won, won].concat());
    let Ok(Install::Present(leaf)) = vm.reach(HOLE, &mut tally) else { panic!("not there") };
    assert!(scratch(&vm.space).is_behind(&leaf));
    // The neighbour: the same page, at another address.
    assert_eq!(vm.reach(HOLE + 0x1000, &mut tally), Ok(Install::Installed(Pa::new(PA))));
    assert_eq!(
        tally,
        Tally { tables: 2, ..Tally::default() },
        "leaves are for the caller to count"
    );
    assert_eq!(vm.leaf(HOLE).bits(), scratch(&vm.space).descriptor().bits());
    let found = vm.space.translate(&vm.cpu.enter(), Ipa::new(HOLE + 0x1234)).unwrap();
    assert_eq!(found.pa.get(), PA + 0x234);
}

#[test]
fn memory_that_is_there_stays_and_what_is_no_leaf_takes_no_scratch() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    let page = vm.map(HOLE, Level::L3, Owner::Vm);
    let block = vm.map(HOLE + (2 << 20), Level::L2, Owner::Vm);
    for (at, pa) in [(HOLE, page), (HOLE + (2 << 20) + 0x5000, block)] {
        match vm.reach(at, &mut tally) {
            Ok(Install::Present(leaf)) => assert_eq!(leaf.pa().get(), pa),
            other => panic!("{other:?}"),
        }
    }
    let note = Note::new(5).unwrap();
    let drain = vm.slot(HOLE).load(&vm.space.arch).to_drain(Level::L3).unwrap();
    let busy = vm.slot(HOLE).load(&vm.space.arch).to_busy().unwrap();
    let (level, foreign) = (Level::L3, Descriptor::from_bits(0x1001));
    for (held, wanted) in [
        (Descriptor::note(note), InstallError::Note { level, note }),
        (drain, InstallError::Retry { level, seen: drain }),
        (busy, InstallError::Retry { level, seen: busy }),
        (Descriptor::DEAD, InstallError::Retry { level, seen: Descriptor::DEAD }),
        (foreign, InstallError::Occupied { level, seen: foreign }),
    ] {
        vm.put(HOLE, held);
        assert_eq!(vm.reach(HOLE, &mut tally), Err(wanted));
        assert_eq!(vm.slot(HOLE).load(&vm.space.arch), held);
    }
    let (ipa, bits) = (Ipa::new(1 << 40), 40);
    assert_eq!(vm.reach(1 << 40, &mut tally), Err(InstallError::BeyondIpaSize { ipa, bits }));
    assert_eq!(tally, Tally::default(), "nothing was installed");
}

#[test]
fn scratch_of_other_tables_and_guards_of_other_epochs_are_refused() {
    let (pages, epochs, others) = (Pages::new(usize::MAX), Epochs::<1>::new(), Epochs::<1>::new());
    let (vm, small) = (Vm::new(&pages, &epochs), space(&pages, &epochs, 30));
    let (foreign, mut tally, ipa) = (scratch(&small), Tally::default(), Ipa::new(HOLE));
    let refused = vm.space.install_scratch(&vm.cpu.enter(), ipa, &foreign, &mut tally);
    assert_eq!(refused, Err(InstallError::ForeignMapping));
    let (stranger, own) = (others.join(0).unwrap(), scratch(&vm.space));
    let refused = vm.space.install_scratch(&stranger.enter(), ipa, &own, &mut tally);
    assert_eq!(refused, Err(InstallError::ForeignGuard));
    assert_eq!(tally, Tally::default());
}

/// What a VM's scratch page holds is shown to no other, though their leaves are the same bit by bit.
#[test]
fn scratch_of_a_vm_with_tables_of_the_same_shape_is_refused() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (vm, other) = (Vm::new(&pages, &epochs), space(&pages, &epochs, 40));
    let (foreign, mut tally, ipa) = (scratch(&other), Tally::default(), Ipa::new(HOLE));
    assert_eq!(foreign.descriptor(), scratch(&vm.space).descriptor());
    let refused = vm.space.install_scratch(&vm.cpu.enter(), ipa, &foreign, &mut tally);
    assert_eq!(refused, Err(InstallError::ForeignMapping));
    assert_eq!(tally, Tally::default(), "no table, either");

    let _ = vm.reach(HOLE, &mut tally).unwrap();
    let (mapping, mut real) = (at(&vm.space, PAGE), Real::new(9));
    let mut claim = vm.space.claim(range(HOLE, 0x1000)).unwrap();
    let batch = Batch { from: ipa, slots: 1 };
    let refused =
        vm.space.replace_scratch(&vm.cpu, &mut claim, batch, &foreign, &mapping, &mut real, || {});
    assert_eq!(refused, Err(ReplaceError::ForeignMapping));
    assert_eq!((vm.pa(HOLE), real.taken.len()), (Some(PA), 0));
}

/// Without a table nothing is shown; and there is no exchange on some machines.
#[test]
fn what_is_missing_is_said_and_nothing_is_lost() {
    let (pages, epochs) = (Pages::new(2), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    assert_eq!(vm.reach(HOLE, &mut tally), Err(InstallError::OutOfTables));
    assert_eq!(tally, Tally { tables: 1, ..Tally::default() }, "what was linked stays, and counts");
    let pages = Pages::new(usize::MAX);
    let space =
        Space::new(geometry(40), vmids(), epochs.domain(), &pages, NoAtomicInstall).unwrap();
    let (guard, scratch) = (vm.cpu.enter(), scratch(&space));
    let refused = space.install_scratch(&guard, Ipa::new(HOLE), &scratch, &mut Tally::default());
    assert_eq!(refused, Err(InstallError::Unsupported));
}

#[test]
fn unmap_takes_scratch_like_any_leaf_and_tells_nobody_of_a_frame() {
    for budget in [1, 7, 512, 100_000] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let mut vm = Vm::new(&pages, &epochs);
        let (tables, mut tally) = (pages.live(), Tally::default());
        let frame = vm.map(HOLE + 0x3000, Level::L3, Owner::Vm);
        for page in [0, 1, 2, 511, 512, 700] {
            let shown = vm.reach(HOLE + page * 4096, &mut tally);
            assert_eq!(shown, Ok(Install::Installed(Pa::new(PA))));
        }
        // As `map` does not tell what it did.
        tally.installed += 1;
        tally.tables += 2;
        vm.space.credit(&tally);
        vm.space.credit_scratch(6);
        let account = vm.space.account();
        assert_eq!((account.scratched, account.leaves_now()), (6, 7));
        let released = vm.unmap(range(0, 1 << 40), budget, Notes::Keep).unwrap();
        assert_eq!(released.0, [(HOLE + 0x3000, (frame, 4096))].into(), "budget {budget}");
        let account = vm.space.account();
        assert_eq!((account.others_unmapped, account.unmapped), (6, [0, 0, 1]));
        assert_eq!((account.leaves_now(), account.tables_now()), (0, 0));
        assert_eq!(pages.live(), tables, "every table was given back");
    }
}

#[test]
fn scratch_is_removed_alone_and_tables_that_hold_nothing_else_go() {
    for budget in [1, 7, 512, 100_000] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let mut vm = Vm::new(&pages, &epochs);
        let root = pages.live();
        let mut tally = Tally::default();
        SHOWN_AT.iter().for_each(|n| _ = vm.reach(HOLE + n * 4096, &mut tally).unwrap());
        let page = vm.map(HOLE + 0x5000, PAGE, Owner::Vm);
        let other = vm.map(HOLE + 0x6000, PAGE, Owner::Other);
        let block = vm.map(HOLE + (8 << 20), Level::L2, Owner::Vm);
        let straddles = vm.map(HOLE + (12 << 20), Level::L2, Owner::Vm);
        vm.space.credit(&tally);
        let released = vm.remove(range(HOLE, (12 << 20) + 0x1000), budget).unwrap();
        assert!(released.0.is_empty(), "budget {budget}: a frame was told of");
        SHOWN_AT.iter().for_each(|n| assert_eq!(vm.pa(HOLE + n * 4096), None));
        let there = [0x5000, 0x6000, 8 << 20, 12 << 20].map(|ipa| vm.pa(HOLE + ipa));
        assert_eq!(there, [page, other, block, straddles].map(Some));
        assert_eq!(pages.live(), root + 2, "of four tables that of level 1 and one of pages stay");
        let account = vm.space.account();
        assert_eq!((account.others_unmapped, account.unmapped), (8, [0; 3]));
    }
}

/// What an operation that was given up has left in Drain is the claim's to finish, here too.
#[test]
fn a_removal_finishes_what_was_given_up() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let page = vm.map(HOLE, PAGE, Owner::Vm);
    let drain = vm.slot(HOLE).load(&vm.space.arch).to_drain(PAGE).unwrap();
    vm.put(HOLE, drain);
    let _ = vm.space.arch.take_log();
    let released = vm.remove(range(HOLE, 0x1000), 1).unwrap();
    assert_eq!(released.0, [(HOLE, (page, 4096))].into());
    let flushed = vm.space.arch.take_log().iter().any(|event| matches!(event, Event::Tlbi(..)));
    assert!(flushed, "its flush may not have been");
}
