//! The machine with EL2's root in it, a VM whose window is hooked there, and what EL2 reaches by it.

use mmu_oracle::{Event, Machine, OracleMachine};
use stage2::epoch::Cpu;
use stage2::space::{Batch, Extent, Notes, Progress, Release};
use stage2::vmid::Vmids;
use stage2::window::{Recovered, Site};
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Flushed, Former, Geometry, HwUpdate,
    Ipa, IpaRange, Level, MemType, Memory, Owner, PAGE_SIZE, Pa, Prot, Slot, Space, Vmid,
};

pub(crate) const PES: usize = 2;
pub(crate) const MIB2: u64 = 2 << 20;
/// Where the VM's memory begins, and how much of it EL2's window covers.
pub(crate) const BASE: u64 = 0x4000_0000;
pub(crate) const COVERED: u64 = 4 * MIB2;
/// Where that lies in the machine.
pub(crate) const MEMORY: u64 = 0x8000_0000;
/// EL2's window: slot 256 of EL2's root.
pub(crate) const WINDOW: u64 = 1 << 47;
/// Normal write-back memory, in MAIR_EL2.
pub(crate) const NORMAL: u8 = 1;

pub(crate) type Vm<'r> = Space<'r, &'r OracleMachine, &'r OracleMachine>;

/// The machine, and EL2's root in it.
pub(crate) struct Rig {
    pub(crate) machine: OracleMachine,
    pub(crate) epochs: Epochs<PES>,
    pub(crate) vmids: Vmids<PES>,
    pub(crate) geometry: Geometry,
    pub(crate) el2: Pa,
}

pub(crate) fn site() -> Site {
    Site::new(WINDOW, NORMAL).unwrap()
}

pub(crate) fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

impl Rig {
    pub(crate) fn new(caps: Caps) -> Self {
        Self::of_bits(39, caps)
    }

    pub(crate) fn of_bits(ipa_bits: u32, caps: Caps) -> Self {
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
    pub(crate) fn vm(&self) -> Vm<'_> {
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
    pub(crate) fn hook(&self) -> &Slot {
        // SAFETY: (1) allocated when the rig was made, and never given back.
        unsafe { self.machine.table_at(self.el2) }.slot((WINDOW >> 39) as usize)
    }

    /// Where a walk of EL2 ends, by the letter of D8.3: the slot, and what it holds; `None` where a table is missing.
    pub(crate) fn el2_walk(&self, va: u64) -> Option<(&Slot, u64)> {
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
    pub(crate) fn el2_reaches(&self, ipa: u64) -> Option<u64> {
        let (_, bits) = self.el2_walk(WINDOW + ipa)?;
        let page = bits & 0x0000_ffff_ffff_f000;
        (bits & 0b11 == 0b11).then_some(page | ipa & (PAGE_SIZE - 1))
    }

    /// EL2 of PE `pe` touches the guest's memory, and its fault is recovered.
    pub(crate) fn touch(&self, vm: &Vm<'_>, pe: usize, ipa: u64, write: bool) -> Recovered {
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
    pub(crate) fn assert_sound(&self, what: &dyn core::fmt::Debug) {
        let verdicts = self.machine.verdicts();
        if let Some(verdict) = verdicts.first() {
            panic!("{what:?}: {} verdicts, the first: {verdict}", verdicts.len());
        }
    }

    /// Every slot of the window that leads to a page leads to the one that stage 2 has there, and none is in transition.
    #[track_caller]
    pub(crate) fn assert_agrees(&self, vm: &Vm<'_>) {
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
    pub(crate) fn el2_tlbis(&self) -> usize {
        let trace = self.machine.trace();
        trace.iter().filter(|e| matches!(e, Event::Tlbi { aim, .. } if aim.is_el2())).count()
    }
}

/// Memory as it is mapped here.
pub(crate) fn ram(level: Level) -> Extent {
    let attributes = Attributes::new(Prot::RW, MemType::Normal);
    Extent { pa: Pa::new(MEMORY), attributes, owner: Owner::Vm, coarsest: level }
}

/// Maps `extent` at `at`, to memory that lies as far behind [`MEMORY`] as `at` lies behind [`BASE`].
pub(crate) fn map(rig: &Rig, vm: &Vm<'_>, at: IpaRange, extent: &Extent) {
    let cpu = rig.epochs.join(0).unwrap();
    let pa = Pa::new(MEMORY + (at.start().get() - BASE));
    let mut claim = vm.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let extent = Extent { pa, ..*extent };
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    assert_eq!(unsafe { vm.map(&cpu, &mut claim, all, &extent) }, Ok(Progress::Done));
}

/// Tells the machine what is given back, when it is.
pub(crate) struct Back<'m>(pub(crate) &'m OracleMachine, pub(crate) Vec<u64>);

impl Release for Back<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        let (frame, bytes) = (former.pa().get(), former.level().slot_bytes());
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes });
        self.1.push(frame);
    }
}

pub(crate) fn unmap(rig: &Rig, vm: &Vm<'_>, at: IpaRange) -> usize {
    let cpu = rig.epochs.join(0).unwrap();
    unmap_on(rig, vm, &cpu, at)
}

pub(crate) fn unmap_on(rig: &Rig, vm: &Vm<'_>, cpu: &Cpu<'_>, at: IpaRange) -> usize {
    let mut back = Back(&rig.machine, vec![]);
    let mut claim = vm.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let done = vm.unmap(cpu, &mut claim, all, Notes::Remove, || {}, &mut back);
    assert_eq!(done, Ok(Progress::Done));
    back.1.len()
}

/// The caps that choose the operand of VAE2IS.
pub(crate) const CAPS: [Caps; 2] = [Caps::empty(), Caps::TTL];
