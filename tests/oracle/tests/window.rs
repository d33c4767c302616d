//! EL2's window on the oracle's machine: what EL2's own stage 1 may hold of a VM's memory, and for how long.
//!
//! EL2's root is a page of the machine's, which the model is told of; every PE may walk from there at any time. A page that is
//! released or copied counts as freed from that moment on: whoever can still reach it, a guest or EL2, could write to
//! what is somebody else's.

use std::sync::atomic::{AtomicUsize, Ordering};

use mmu_oracle::event::{Aim, Scope};
use mmu_oracle::{Event, Machine, Model, OracleMachine};
use stage2::epoch::Cpu;
use stage2::space::{
    Batch, Blocks, CopyCollapse, Engine, Extent, Notes, Progress, Release, Replaced, Replacements,
};
use stage2::vmid::Vmids;
use stage2::window::{OpenError, Recovered, Site, tables_for};
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Flushed, Former, Geometry, HwUpdate,
    Ipa, IpaRange, Level, MemType, Memory, Note, Owner, PAGE_SIZE, Pa, Prot, Slot, Space, Tally,
    Vmid, Write,
};

const PES: usize = 2;
const MIB2: u64 = 2 << 20;
/// Where the VM's memory begins, and how much of it EL2's window covers.
const BASE: u64 = 0x4000_0000;
const COVERED: u64 = 4 * MIB2;
/// Where that lies in the machine.
const MEMORY: u64 = 0x8000_0000;
/// EL2's window: slot 256 of EL2's root.
const WINDOW: u64 = 1 << 47;
/// Normal write-back memory, in MAIR_EL2.
const NORMAL: u8 = 1;

type Vm<'r> = Space<'r, &'r OracleMachine, &'r OracleMachine>;

/// The machine, and EL2's root in it.
struct Rig {
    machine: OracleMachine,
    epochs: Epochs<PES>,
    vmids: Vmids<PES>,
    geometry: Geometry,
    el2: Pa,
}

fn site() -> Site {
    Site::new(WINDOW, NORMAL).unwrap()
}

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

impl Rig {
    fn new(caps: Caps) -> Self {
        Self::of_bits(39, caps)
    }

    fn of_bits(ipa_bits: u32, caps: Caps) -> Self {
        let caps = caps | Caps::GRANULE_4K;
        let features = Features { caps, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
        let geometry = Geometry::new(ipa_bits, &features, HwUpdate::Off).unwrap();
        let root_pages = geometry.root_tables() as u64;
        let setup = Machine { pes: PES, root_pages, ..Machine::default() };
        let machine = OracleMachine::new(setup, 64);
        let el2 = (&machine).alloc_table(1).unwrap();
        machine.note(|pe| Event::El2Root { pe, root: el2.get() });
        let vmids = Vmids::only(Vmid::new(3, 8).unwrap());
        Self { machine, epochs: Epochs::new(), vmids, geometry, el2 }
    }

    /// A VM that runs on both PEs, with EL2's window over a part of it, hooked.
    fn vm(&self) -> Vm<'_> {
        let (epochs, machine) = (self.epochs.domain(), &self.machine);
        let vm = Space::new(self.geometry, &self.vmids, epochs, machine, machine).unwrap();
        vm.open_window(site(), range(BASE, COVERED)).unwrap();
        // SAFETY: (1) EL2's root lives as long as the machine; (2) nobody accesses memory here; (3) as the machine walks.
        assert!(unsafe { vm.hook_window(self.hook()) });
        for pe in 0..PES {
            self.machine.on_pe(pe, || {
                let mut cpu = self.vmids.join(pe).unwrap();
                // SAFETY: (1, 2) the only VM.
                core::mem::forget(unsafe { vm.enter(&mut cpu, 0) }.unwrap());
            });
        }
        vm
    }

    /// The slot of EL2's root that leads to the window.
    fn hook(&self) -> &Slot {
        // SAFETY: (1) allocated when the rig was made, and never given back.
        unsafe { self.machine.table_at(self.el2) }.slot((WINDOW >> 39) as usize)
    }

    /// Where a walk of EL2 ends, by the letter of D8.3: the slot, and what it holds; `None` where a table is missing.
    fn el2_walk(&self, va: u64) -> Option<(&Slot, u64)> {
        let mut table = self.el2;
        for shift in [39, 30, 21] {
            let index = (va >> shift & 511) as usize;
            // SAFETY: (1) linked, and nothing is given back meanwhile.
            let bits = (&self.machine).load(unsafe { self.machine.table_at(table) }.slot(index));
            if bits & 0b11 != 0b11 {
                return None;
            }
            table = Pa::new(bits & 0x0000_ffff_ffff_f000);
        }
        // SAFETY: (1) as above.
        let slot = unsafe { self.machine.table_at(table) }.slot((va >> 12 & 511) as usize);
        Some((slot, (&self.machine).load(slot)))
    }

    /// Which byte of memory EL2 reaches for an IPA.
    fn el2_reaches(&self, ipa: u64) -> Option<u64> {
        let (_, bits) = self.el2_walk(WINDOW + ipa)?;
        let page = bits & 0x0000_ffff_ffff_f000;
        (bits & 0b11 == 0b11).then_some(page | ipa & (PAGE_SIZE - 1))
    }

    /// EL2 of PE `pe` touches the guest's memory, and its fault is recovered.
    fn touch(&self, vm: &Vm<'_>, pe: usize, ipa: u64, write: bool) -> Recovered {
        self.machine.on_pe(pe, || {
            let cpu = self.epochs.join(pe).expect("one handler a CPU");
            let recovered = vm.recover_window(&cpu.enter(), Ipa::new(ipa), write);
            if recovered == Recovered::Mapped {
                // The instruction is repeated, and translates.
                self.machine.note(|pe| Event::Published { pe });
            }
            recovered
        })
    }

    #[track_caller]
    fn assert_sound(&self, what: &dyn core::fmt::Debug) {
        let verdicts = self.machine.verdicts();
        if let Some(verdict) = verdicts.first() {
            panic!("{what:?}: {} verdicts, the first: {verdict}", verdicts.len());
        }
    }

    /// Every slot of the window that leads to a page leads to the one that stage 2 has there, and none is in transition.
    #[track_caller]
    fn assert_agrees(&self, vm: &Vm<'_>) {
        let cpu = self.epochs.join(1).unwrap();
        let guard = cpu.enter();
        for ipa in (BASE..BASE + COVERED).step_by(PAGE_SIZE as usize) {
            let (_, bits) = self.el2_walk(WINDOW + ipa).expect("it was built");
            if bits != 0 {
                let found = vm.translate(&guard, Ipa::new(ipa)).map(|found| found.pa.get());
                assert_eq!(
                    self.el2_reaches(ipa),
                    found,
                    "{ipa:#x}: a slot holds only what stage 2 holds"
                );
            }
        }
    }

    /// Invalidations of EL2's own regime so far.
    fn el2_tlbis(&self) -> usize {
        let trace = self.machine.trace();
        trace.iter().filter(|e| matches!(e, Event::Tlbi { aim, .. } if aim.is_el2())).count()
    }
}

/// Memory as it is mapped here.
fn ram(level: Level) -> Extent {
    let attributes = Attributes::new(Prot::RW, MemType::Normal);
    Extent { pa: Pa::new(MEMORY), attributes, owner: Owner::Vm, coarsest: level }
}

/// Maps `extent` at `at`, to memory that lies as far behind [`MEMORY`] as `at` lies behind [`BASE`].
fn map(rig: &Rig, vm: &Vm<'_>, at: IpaRange, extent: &Extent) {
    let cpu = rig.epochs.join(0).unwrap();
    let pa = Pa::new(MEMORY + (at.start().get() - BASE));
    let mut claim = vm.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let extent = Extent { pa, ..*extent };
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    assert_eq!(unsafe { vm.map(&cpu, &mut claim, all, &extent) }, Ok(Progress::Done));
}

/// Tells the machine what is given back, when it is.
struct Back<'m>(&'m OracleMachine, Vec<u64>);

impl Release for Back<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        let (frame, bytes) = (former.pa().get(), former.level().slot_bytes());
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes });
        self.1.push(frame);
    }
}

fn unmap(rig: &Rig, vm: &Vm<'_>, at: IpaRange) -> usize {
    let cpu = rig.epochs.join(0).unwrap();
    unmap_on(rig, vm, &cpu, at)
}

fn unmap_on(rig: &Rig, vm: &Vm<'_>, cpu: &Cpu<'_>, at: IpaRange) -> usize {
    let mut back = Back(&rig.machine, vec![]);
    let mut claim = vm.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let done = vm.unmap(cpu, &mut claim, all, Notes::Remove, || {}, &mut back);
    assert_eq!(done, Ok(Progress::Done));
    back.1.len()
}

/// The caps that choose the operand of VAE2IS.
const CAPS: [Caps; 2] = [Caps::empty(), Caps::TTL];

#[test]
fn el2_reaches_what_stage_2_holds_page_by_page() {
    for level in [Level::L2, Level::L3] {
        let rig = Rig::new(Caps::TTL);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, MIB2), &ram(level));
        assert_eq!(rig.el2_reaches(BASE), None, "nothing is there before it is touched");
        for at in [0, 0x7000, 0x1f_e000] {
            assert_eq!(rig.touch(&vm, 1, BASE + at + 0x123, true), Recovered::Mapped);
            assert_eq!(rig.el2_reaches(BASE + at + 0x123), Some(MEMORY + at + 0x123));
            // A neighbour is not there with it, and a second fault finds it done.
            assert_eq!(rig.el2_reaches(BASE + at + 0x1000), None);
            assert_eq!(rig.touch(&vm, 0, BASE + at, false), Recovered::Mapped);
        }
        let (_, bits) = rig.el2_walk(WINDOW + BASE).unwrap();
        // Page, AttrIndx 1, AP RES1 and writable, Inner Shareable, AF; XN.
        assert_eq!(bits & !0x0000_ffff_ffff_f000, 1 << 54 | 0x747, "EL2's page is {bits:#x}");
        assert_eq!(rig.el2_tlbis(), 0, "what faulted is not cached");
        rig.assert_sound(&level);
    }
}

#[test]
fn what_el2_cannot_reach_is_an_answer() {
    let rig = Rig::new(Caps::empty());
    let vm = rig.vm();
    let touch = |at, write| rig.touch(&vm, 0, at, write);
    let read_only =
        Extent { attributes: Attributes::new(Prot::RO, MemType::Normal), ..ram(Level::L3) };
    let device =
        Extent { attributes: Attributes::new(Prot::RW, MemType::Device), ..ram(Level::L3) };
    let clean = Attributes { write: Write::Clean, ..Attributes::new(Prot::RW, MemType::Normal) };
    map(&rig, &vm, range(BASE + 0x1000, 0x1000), &read_only);
    map(&rig, &vm, range(BASE + 0x2000, 0x1000), &device);
    map(&rig, &vm, range(BASE + 0x3000, 0x1000), &Extent { attributes: clean, ..ram(Level::L3) });
    map(&rig, &vm, range(BASE + COVERED, 0x1000), &ram(Level::L3));
    {
        let cpu = rig.epochs.join(0).unwrap();
        let mut claim = vm.claim(range(BASE + 0x4000, 0x1000)).unwrap();
        let (all, note) = (Batch::all_of(&claim), Note::new(7).unwrap());
        assert_eq!(vm.annotate(&cpu, &mut claim, all, note), Ok(Progress::Done));
    }
    assert_eq!(touch(BASE, false), Recovered::Fill);
    assert_eq!(touch(BASE + 0x1000, true), Recovered::ReadOnly);
    assert_eq!(touch(BASE + 0x1000, false), Recovered::Mapped);
    assert_eq!(touch(BASE + 0x1000, true), Recovered::ReadOnly, "though its slot is there");
    assert_eq!(touch(BASE + 0x2000, false), Recovered::NotCovered, "a device");
    assert_eq!(
        touch(BASE + 0x3000, true),
        Recovered::Mapped,
        "the write is recorded by who makes it"
    );
    assert_eq!(touch(BASE + 0x4000, false), Recovered::NotCovered, "a note");
    assert_eq!(touch(BASE + COVERED, false), Recovered::NotCovered, "beyond what was opened");
    assert_eq!(touch(1 << 40, false), Recovered::NotCovered, "beyond the IPA size");
    rig.assert_sound(&"answers");
}

/// As many slots as are gathered for one flush of EL2's, one fewer, one more, and several times that.
#[test]
fn an_unmap_takes_the_pages_from_el2_before_they_are_released() {
    for (caps, pages) in
        CAPS.into_iter().flat_map(|caps| [1, 2, 31, 32, 33, 100].map(|n| (caps, n)))
    {
        let rig = Rig::new(caps);
        let vm = rig.vm();
        let at = range(BASE + MIB2 - 0x4000, pages * PAGE_SIZE);
        map(&rig, &vm, at, &ram(Level::L3));
        let touched = |n: u64| BASE + MIB2 - 0x4000 + n * PAGE_SIZE;
        (0..pages).for_each(|n| assert_eq!(rig.touch(&vm, 1, touched(n), true), Recovered::Mapped));
        assert_eq!(unmap(&rig, &vm, at) as u64, pages);
        rig.assert_sound(&(caps, pages));
        for n in 0..pages {
            let (_, bits) = rig.el2_walk(WINDOW + touched(n)).unwrap();
            let at = touched(n);
            assert_eq!(bits, 0, "{at:#x}: what is released can be filled again");
            assert_eq!(rig.touch(&vm, 0, touched(n), true), Recovered::Fill);
        }
        // Other memory at the same addresses, which EL2 reaches at once.
        let elsewhere = range(BASE + 2 * MIB2, pages * PAGE_SIZE);
        map(&rig, &vm, elsewhere, &ram(Level::L3));
        assert_eq!(rig.touch(&vm, 1, BASE + 2 * MIB2, true), Recovered::Mapped);
        rig.assert_sound(&(caps, pages));
        rig.assert_agrees(&vm);
        assert_eq!(rig.el2_tlbis() as u64, pages, "one for each page that EL2 had");
    }
}

/// Blocks, whole tables that are given back, and parts of tables that stay.
#[test]
fn whatever_is_unmapped_is_gone_from_el2_and_nothing_else() {
    for (level, at) in [
        (Level::L2, range(BASE, 2 * MIB2)),
        (Level::L3, range(BASE, 2 * MIB2)),
        (Level::L3, range(BASE + 0x5000, 0x3000)),
        (Level::L3, range(BASE + MIB2 - 0x1000, 0x2000)),
    ] {
        let rig = Rig::new(Caps::TTL);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, 3 * MIB2), &ram(level));
        let touched = [0, 0x4000, 0x5000, 0x7000, 0x8000, MIB2 - 0x1000, MIB2, 2 * MIB2];
        let touched = touched.map(|at| BASE + at);
        for ipa in touched {
            assert_eq!(rig.touch(&vm, 1, ipa, false), Recovered::Mapped);
        }
        unmap(&rig, &vm, at);
        rig.assert_sound(&(level, at));
        for ipa in touched {
            let there = (!at.contains(Ipa::new(ipa))).then_some(MEMORY + (ipa - BASE));
            let wanted = "what goes is gone, and what stays is there";
            assert_eq!(rig.el2_reaches(ipa), there, "{level} {at}, {ipa:#x}: {wanted}");
        }
        rig.assert_agrees(&vm);
        let gone = touched.iter().filter(|ipa| at.contains(Ipa::new(**ipa))).count();
        assert_eq!(rig.el2_tlbis(), gone, "{level} {at}: what stays is not invalidated");
    }
}

/// EL2's window is 512 GiB, and a VM may have more: its tables have no place for what lies beyond, and the indices of an address
/// there are those of another, below.
#[test]
fn what_lies_beyond_the_window_is_not_taken_for_what_lies_below() {
    let far = BASE + (1 << 39);
    for level in [Level::L2, Level::L3] {
        let rig = Rig::of_bits(40, Caps::TTL);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, MIB2), &ram(level));
        map(&rig, &vm, range(far, MIB2), &ram(level));
        let answer = rig.touch(&vm, 1, far + 0x3000, true);
        assert_eq!(rig.el2_reaches(BASE + 0x3000), None, "a fault beyond fills nothing below");
        assert_eq!(answer, Recovered::NotCovered);
        assert_eq!(rig.touch(&vm, 1, BASE + 0x3000, true), Recovered::Mapped);
        unmap(&rig, &vm, range(far, MIB2));
        assert_eq!(rig.el2_reaches(BASE + 0x3000), Some(MEMORY + 0x3000), "it stays");
        rig.assert_sound(&level);
        unmap(&rig, &vm, range(BASE, MIB2));
        rig.assert_sound(&level);
        assert_eq!(rig.el2_reaches(BASE + 0x3000), None);
    }
}

/// Copies no bytes, but tells the machine when it would: from then on nobody writes to the page.
struct Fresh<'m>(&'m OracleMachine, u64, Option<CopyCollapse>);

impl Release for Fresh<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        let frame = former.pa().get();
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes: PAGE_SIZE });
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Blocks for Fresh<'_> {
    fn take(&mut self) -> Option<Pa> {
        Some(Pa::new(self.1))
    }
    fn give_back(&mut self, _: Pa) {}
    fn copy(&mut self, _: Ipa, from: Pa, _: Pa) {
        self.0.note(|pe| Event::FreeFrame { pe, frame: from.get(), bytes: PAGE_SIZE });
    }
    fn fill(&mut self, _: Ipa, _: Pa) {}
    fn finish(&mut self, _: Ipa, _: Pa) {}
    fn heard(&mut self, _: Ipa, what: CopyCollapse) {
        self.2 = Some(what);
    }
}

fn copy(rig: &Rig, vm: &Vm<'_>, holes: usize) -> Option<CopyCollapse> {
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(range(BASE, MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    let mut fresh = Fresh(&rig.machine, 0xc000_0000, None);
    let done = vm.copy_collapse(&cpu, &mut claim, all, holes, &mut fresh, || {});
    assert_eq!(done, Ok(Progress::Done));
    fresh.2
}

#[test]
fn a_copy_takes_the_pages_from_el2_before_it_reads_them() {
    for caps in CAPS {
        let rig = Rig::new(caps);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, MIB2), &ram(Level::L3));
        for at in [0, 0x3000, MIB2 - 0x1000] {
            assert_eq!(rig.touch(&vm, 1, BASE + at, true), Recovered::Mapped);
        }
        assert_eq!(copy(&rig, &vm, 0), Some(CopyCollapse::Made { filled: 0 }));
        rig.assert_sound(&caps);
        assert_eq!(rig.el2_reaches(BASE + 0x3000), None);
        assert_eq!(rig.touch(&vm, 1, BASE + 0x3000, true), Recovered::Mapped, "it is open again");
        assert_eq!(rig.el2_tlbis(), 3, "one for each page that EL2 had");
        assert_eq!(rig.el2_reaches(BASE + 0x3000), Some(0xc000_3000), "a page of the block");
        rig.assert_sound(&caps);
        rig.assert_agrees(&vm);
    }
}

/// What changes and stays where it was costs EL2 nothing.
#[test]
fn what_does_not_move_stays_in_el2s_window() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    let all = range(BASE, MIB2);
    map(&rig, &vm, all, &ram(Level::L2));
    assert_eq!(rig.touch(&vm, 1, BASE + 0x3000, true), Recovered::Mapped);
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(all).unwrap();
    let batch = Batch::all_of(&claim);
    assert_eq!(vm.split(&cpu, &mut claim, batch, Level::L3), Ok(Progress::Done));
    for engine in [Engine::Break, Engine::InPlace] {
        vm.pin_engine(Some(engine));
        for prot in [Prot::RO, Prot::RW] {
            let relax = stage2::space::Relax::Everywhere;
            assert_eq!(vm.protect(&cpu, &mut claim, batch, prot, relax), Ok(Progress::Done));
        }
    }
    let collapsed = vm.collapse(&cpu, &mut claim, batch, Level::L2, || {}, &mut |_, _| {});
    assert_eq!(collapsed, Ok(Progress::Done));
    assert_eq!((rig.el2_tlbis(), rig.el2_reaches(BASE + 0x3000)), (0, Some(MEMORY + 0x3000)));
    rig.assert_sound(&"nothing moved");
}

/// Frames for scratch to be replaced by.
struct Real(u64);

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Replacements for Real {
    fn take(&mut self, _: Ipa) -> Option<Pa> {
        self.0 += PAGE_SIZE;
        Some(Pa::new(self.0))
    }
    fn give_back(&mut self, _: Ipa, _: Pa) {}
}

/// The scratch page is behind two addresses; one gets memory. From then on nobody writes to scratch by that one.
#[test]
fn memory_takes_the_place_of_scratch_in_el2s_window_too() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables; (3) not kept beyond the space.
    let scratch = unsafe { vm.scratch(Pa::new(0xd000_0000)) }.unwrap();
    let hole = [BASE + 0x1000, BASE + 0x9000];
    {
        let cpu = rig.epochs.join(1).unwrap();
        for ipa in hole {
            let mut tally = Tally::default();
            vm.install_scratch(&cpu.enter(), Ipa::new(ipa), &scratch, &mut tally).unwrap();
        }
    }
    for ipa in hole {
        assert_eq!(rig.touch(&vm, 1, ipa, true), Recovered::Mapped);
        assert_eq!(rig.el2_reaches(ipa), Some(0xd000_0000));
    }
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(range(hole[0], PAGE_SIZE)).unwrap();
    let batch = Batch::all_of(&claim);
    let mapping = vm.mapping(Level::L3, &Attributes::new(Prot::RW, MemType::Normal), Owner::Vm);
    let mut real = Real(0xe000_0000);
    let Replaced { replaced, .. } = vm
        .replace_scratch(&cpu, &mut claim, batch, &scratch, &mapping.unwrap(), &mut real, || {})
        .unwrap();
    drop(cpu);
    assert_eq!(rig.el2_reaches(hole[0]), None, "EL2 reaches scratch there no more");
    assert_eq!(rig.touch(&vm, 1, hole[0], true), Recovered::Mapped, "it is open again");
    let reached = hole.map(|ipa| rig.el2_reaches(ipa));
    assert_eq!(reached, [Some(0xe000_1000), Some(0xd000_0000)]);
    rig.assert_sound(&"scratch was replaced");
    assert_eq!((replaced, rig.el2_tlbis()), (1, 1));
}

/// Scratch between pages of memory, more often than a flush keeps ranges apart: what lies between is flushed with it in stage 2,
/// but stays, and EL2 goes on reaching it.
#[test]
fn scratch_that_is_removed_leaves_the_memory_between_to_el2() {
    const HOLES: u64 = 12;
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables; (3) not kept beyond the space.
    let scratch = unsafe { vm.scratch(Pa::new(0xd000_0000)) }.unwrap();
    let (hole, memory) = (|n: u64| BASE + n * 0x2000, |n: u64| BASE + n * 0x2000 + 0x1000);
    for n in 0..HOLES {
        map(&rig, &vm, range(memory(n), PAGE_SIZE), &ram(Level::L3));
        let cpu = rig.epochs.join(1).unwrap();
        let mut tally = Tally::default();
        vm.install_scratch(&cpu.enter(), Ipa::new(hole(n)), &scratch, &mut tally).unwrap();
        drop(cpu);
        for ipa in [hole(n), memory(n)] {
            assert_eq!(rig.touch(&vm, 1, ipa, true), Recovered::Mapped);
        }
    }
    let cpu = rig.epochs.join(0).unwrap();
    let mut claim = vm.claim(range(BASE, MIB2)).unwrap();
    let (all, mut back) = (Batch::all_of(&claim), Back(&rig.machine, vec![]));
    let done = vm.remove_scratch(&cpu, &mut claim, all, &scratch, || {}, &mut back);
    assert_eq!((done, back.1.len()), (Ok(Progress::Done), 0));
    drop(cpu);
    for n in 0..HOLES {
        assert_eq!(rig.el2_reaches(hole(n)), None);
        let wanted = Some(MEMORY + (memory(n) - BASE));
        assert_eq!(rig.el2_reaches(memory(n)), wanted, "what stays, EL2 goes on reaching");
    }
    // The scratch page can serve somebody else now.
    rig.machine.note(|pe| Event::FreeFrame { pe, frame: scratch.pa().get(), bytes: PAGE_SIZE });
    rig.assert_sound(&"scratch was removed");
    rig.assert_agrees(&vm);
}

/// The steps of EL2's own maintenance, each left out in turn: then something is wrong.
#[test]
fn each_step_of_a_revocation_is_needed() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    map(&rig, &vm, range(BASE, 0x1000), &ram(Level::L3));
    assert_eq!(rig.touch(&vm, 1, BASE, true), Recovered::Mapped);
    unmap(&rig, &vm, range(BASE, 0x1000));
    let trace = rig.machine.trace();
    let slot = trace.iter().rev().find_map(|event| match *event {
        Event::Write { slot, new: 0, .. } => Some(slot),
        _ => None,
    });
    let last = slot.expect("the window's slot is emptied last");
    let from = trace
        .iter()
        .position(|e| matches!(*e, Event::Write { slot, new: 2, .. } if slot == last))
        .expect("it was in Drain before");
    let (mut model, mut needed) = (Model::new(rig.machine.setup()), vec![]);
    for (at, event) in trace.iter().enumerate() {
        let revoked =
            trace[from..at.max(from)].iter().any(|e| matches!(e, Event::El2Flushed { .. }));
        if at > from && !revoked && !matches!(event, Event::El2Flushed { .. }) {
            let mut without = model.clone();
            let shows = |event| {
                without.apply(event);
                !without.verdicts().is_empty()
            };
            assert!(trace[at + 1..].iter().any(shows), "event {at} is not needed: {event}");
            needed.push(event.to_string());
        }
        model.apply(event);
    }
    assert_eq!(
        needed,
        ["0 dsb ishst", "0 tlbi vae2is 0x800040000000 ttl=0b0111", "0 dsb ish", "0 isb"]
    );
}

/// EL2 of another PE touches a page before every exchange by which an unmap gives the table back: the page, or nothing.
#[test]
fn an_access_of_el2_at_any_step_of_an_unmap_leaves_nothing_behind() {
    let met = AtomicUsize::new(0);
    for n in (1..).step_by(9) {
        let rig = Rig::new(Caps::TTL);
        let vm = rig.vm();
        // Every other page, so that there is something to exchange: Empty for Dead.
        let pages = (0..8).map(|n| BASE + n * 0x2000);
        pages.clone().for_each(|at| map(&rig, &vm, range(at, 0x1000), &ram(Level::L3)));
        let touch = || {
            let here = pages.clone().map(|at| rig.touch(&vm, 1, at, true));
            let here = here.filter(|it| *it == Recovered::Mapped).count();
            met.fetch_max(here, Ordering::Relaxed);
        };
        let ((), came) = rig.machine.race_at(n, touch, || _ = unmap(&rig, &vm, range(BASE, MIB2)));
        rig.assert_sound(&n);
        rig.assert_agrees(&vm);
        assert!(
            pages.clone().all(|at| rig.el2_reaches(at).is_none()),
            "{n}: released, and reached"
        );
        if !came {
            assert!(n > 500, "{n} exchanges");
            break;
        }
    }
    assert_eq!(met.into_inner(), 7, "at the first exchange one page is in Drain");
}

/// The handler takes no lock: with that of the very table held by the same CPU, it does what it does.
#[test]
fn a_fault_under_the_lock_of_its_own_table_is_recovered() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    map(&rig, &vm, range(BASE, 0x2000), &ram(Level::L3));
    let cpu = rig.epochs.join(0).unwrap();
    let guard = cpu.enter();
    let locked = vm.lookup_rw(&guard, Ipa::new(BASE)).unwrap().lock().unwrap();
    let nested = cpu.enter();
    assert_eq!(vm.recover_window(&nested, Ipa::new(BASE), true), Recovered::Mapped);
    // A slot in transition under that lock is no reason to wait.
    let slot = locked.slot(Ipa::new(BASE + 0x1000)).unwrap();
    let live = slot.load(&&rig.machine);
    // SAFETY: (1) the table's lock is held; (2) live may become Busy, and be what it was again.
    let busy = |bits: u64| unsafe { (&rig.machine).swap(slot, bits) };
    let _ = busy(live.to_busy().unwrap().bits());
    assert_eq!(vm.recover_window(&nested, Ipa::new(BASE + 0x1000), true), Recovered::Retry);
    let _ = busy(live.bits());
    assert_eq!(vm.recover_window(&nested, Ipa::new(BASE + 0x1000), true), Recovered::Mapped);
    drop((nested, locked));
}

#[test]
fn tables_of_the_window_come_one_by_one_and_go_with_the_vm() {
    let rig = Rig::new(Caps::TTL);
    let (epochs, machine) = (rig.epochs.domain(), &rig.machine);
    let vm: Vm<'_> = Space::new(rig.geometry, &rig.vmids, epochs, machine, machine).unwrap();
    assert_eq!((vm.window_root(), vm.window_address(Ipa::new(0))), (None, None));
    // SAFETY: (1, 2) nobody accesses memory here; (3) as the machine walks.
    assert!(!unsafe { vm.hook_window(rig.hook()) }, "there is nothing to hook");
    let wanted = range(BASE + 0x1f_f000, 2 * MIB2);
    let mut tables = 0;
    loop {
        machine.limit_allocations(1);
        match vm.open_window(site(), wanted) {
            Ok(()) => break,
            Err(OpenError::OutOfTables) => tables += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(tables + 1, 1 + tables_for(&wanted), "the root, and as many as it says");
    machine.limit_allocations(0);
    assert_eq!(vm.open_window(site(), wanted), Ok(()), "all of it is there");
    let other = Site::new(WINDOW + (1 << 39), NORMAL).unwrap();
    assert_eq!(vm.open_window(other, wanted), Err(OpenError::Elsewhere));
    let high = range((1 << 39) - 0x1000, 0x2000);
    assert_eq!(vm.open_window(site(), high), Err(OpenError::TooHigh { range: high }));
    assert_eq!(vm.window_address(Ipa::new(BASE + 5)), Some(WINDOW + BASE + 5));
    machine.limit_allocations(usize::MAX);

    // SAFETY: (1) EL2's root lives as long as the machine; (2) nobody accesses memory here; (3) as the machine walks.
    assert!(unsafe { vm.hook_window(rig.hook()) });
    // More of it, while it is in use.
    vm.open_window(site(), range(BASE + 8 * MIB2, MIB2)).unwrap();
    machine.note(|pe| Event::Published { pe });
    rig.assert_sound(&"who builds relies on it");
    map(&rig, &vm, range(BASE + MIB2, 0x4000), &ram(Level::L3));
    assert_eq!(rig.touch(&vm, 1, BASE + MIB2, true), Recovered::Mapped);
    // SAFETY: (1) hooked above, and nobody accesses memory here.
    unsafe { vm.unhook_window(rig.hook()) };
    assert!(rig.el2_walk(WINDOW + BASE + MIB2).is_none(), "no walk of EL2 comes there");
    let cpu = rig.epochs.join(0).unwrap();
    let mut back = Back(machine, vec![]);
    // SAFETY: (1) no PE runs the VM; (2) unhooked above.
    let account = unsafe { vm.destroy(&cpu, || {}, &mut back) }.unwrap();
    assert_eq!((back.1.len(), account.leaves_now(), account.tables_now()), (4, 0, 0));
    let (allocated, freed) = machine.trace().iter().fold((0, 0), |(a, f), event| match event {
        Event::AllocTable { .. } => (a + 1, f),
        Event::FreeTable { .. } => (a, f + 1),
        _ => (a, f),
    });
    assert_eq!(allocated - freed, 1, "EL2's root alone is left");
    rig.assert_sound(&"the end");
    let forgotten = Event::Tlbi { pe: 0, scope: Scope::Is, aim: Aim::El2All };
    let unhooked = machine.trace().contains(&forgotten);
    assert!(unhooked, "every PE forgot the window");
}
