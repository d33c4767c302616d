//! The real code of crate `stage2` on the oracle's machine.

use mmu_oracle::{Defect, Event, Machine, Model, OracleMachine};
use stage2::addr::PAGE_SIZE;
use stage2::arch::Dsb;
use stage2::space::Frames;
use stage2::tlbi::LeafLevel;
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Geometry, HwUpdate, Install, Ipa,
    IpaRange, Level, MemType, Owner, Pa, Prot, Slot, Space, Tally, View, Vmid,
};

const CPUS: usize = 2;

struct Frame(u64);

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Frames for Frame {
    fn take(&mut self) -> Option<Pa> {
        self.0 += PAGE_SIZE;
        Some(Pa::new(self.0))
    }

    fn give_back(&mut self, _: Pa) {}
}

fn features(caps: Caps) -> Features {
    Features {
        caps: caps | Caps::GRANULE_4K,
        bbm: Bbm::Level0,
        pa_bits: 40,
        errata: Errata::empty(),
    }
}

fn machine(geometry: &Geometry) -> OracleMachine {
    let machine = Machine {
        pes: CPUS,
        start_level: geometry.start() as u8,
        root_pages: geometry.root_tables() as u64,
        ..Machine::default()
    };
    OracleMachine::new(machine, 64)
}

type OracleSpace<'m> = Space<'m, &'m OracleMachine, &'m OracleMachine>;

fn enter_guest(machine: &OracleMachine, vmids: &Vmids<CPUS>, space: &OracleSpace<'_>, pe: usize) {
    machine.on_pe(pe, || {
        let mut cpu = vmids.join(pe).unwrap();
        // SAFETY: (1, 2) the guest of a PE is who was entered last.
        core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
    });
}

fn install(space: &OracleSpace<'_>, epochs: &Epochs<CPUS>, page: u64, frames: &mut Frame) -> Pa {
    let cpu = epochs.join(0).unwrap();
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    let mapping = space.mapping(Level::L3, &attributes, Owner::Vm).unwrap();
    let result = space.install(
        &cpu.enter(),
        Ipa::new(page * PAGE_SIZE),
        &mapping,
        frames,
        &mut Tally::default(),
    );
    match result {
        Ok(Install::Installed(pa)) => pa,
        other => panic!("{other:?}"),
    }
}

/// The level-3 slot of an address that is mapped.
fn leaf_slot<'m>(machine: &'m OracleMachine, space: &OracleSpace<'_>, ipa: Ipa) -> &'m Slot {
    let geometry = space.geometry();
    let mut pa = geometry.root_page(space.root(), ipa);
    let mut level = geometry.start();
    loop {
        // SAFETY: (1) linked, and nothing is freed in these tests.
        let slot = unsafe { machine.table_at(pa) }.slot(level.index(ipa));
        match slot.load(&machine).view(level) {
            View::Table(next) => pa = next,
            _ => return slot,
        }
        level = level.next().unwrap();
    }
}

/// Populates `pages` pages and takes them away again, in the order of the design: live → Drain,
/// one flush, Empty, frames back. `other_vmid` is what VTTBR_EL2 holds meanwhile.
fn populate_and_unmap(caps: Caps, pages: u64, level: LeafLevel, other_vmid: bool) -> OracleMachine {
    let features = features(caps);
    let geometry = Geometry::new(40, &features, HwUpdate::Off).unwrap();
    let machine = machine(&geometry);
    let epochs = Epochs::<CPUS>::new();
    let vmids = Vmids::only(Vmid::new(3, 8).unwrap());
    {
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
        (0..CPUS).for_each(|pe| enter_guest(&machine, &vmids, &space, pe));
        let mut frames = Frame(0x8000_0000);
        let installed: Vec<Pa> =
            (0..pages).map(|page| install(&space, &epochs, page, &mut frames)).collect();
        if other_vmid {
            (&&machine).dsb(Dsb::Ish);
            // SAFETY: (1) another VM's value, as if it ran here now; (2) the DSB above.
            unsafe { (&machine).set_vttbr(9 << 48 | 0x5000_0000) };
            (&machine).isb();
        }
        let range = IpaRange::new(Ipa::new(0), pages * PAGE_SIZE).unwrap();
        let drained: Vec<_> = (0..pages)
            .map(|page| {
                let slot = leaf_slot(&machine, &space, Ipa::new(page * PAGE_SIZE));
                // SAFETY: (1) live, and one thread changes these tables.
                unsafe { slot.clear(&&machine, Level::L3) }.unwrap()
            })
            .collect();
        let flushed = space.tlb().reduce(range, level);
        for (slot, frame) in drained.into_iter().zip(installed) {
            // SAFETY: (1) flushed above, the whole range.
            unsafe { slot.release(&&machine, &flushed) };
            machine.note(|pe| Event::FreeFrame { pe, frame: frame.get(), bytes: PAGE_SIZE });
        }
    }
    machine
}

#[test]
fn the_real_sequences_are_sound() {
    for caps in [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE, Caps::TLBI_RANGE | Caps::TTL] {
        for pages in [1, 2, 3, 7, 33, 65] {
            for level in [LeafLevel::Unknown, LeafLevel::L3] {
                for other_vmid in [false, true] {
                    let machine = populate_and_unmap(caps, pages, level, other_vmid);
                    assert_eq!(machine.verdicts(), [], "{caps:?} {pages} {level:?} {other_vmid}");
                }
            }
        }
    }
}

/// Every single step of the sequence is needed: the trace without it shows a defect.
#[test]
fn no_step_of_the_flush_can_be_left_out() {
    let machine = populate_and_unmap(Caps::TLBI_RANGE, 3, LeafLevel::Unknown, true);
    let trace = machine.trace();
    let first_clear =
        trace.iter().position(|e| matches!(e, Event::Write { new, .. } if new & 0xf == 2)).unwrap();
    let flushed = |e: &Event| matches!(e, Event::Flushed { .. });
    let last = first_clear + trace[first_clear..].iter().position(flushed).unwrap();
    let setup = Machine { pes: CPUS, root_pages: 2, ..Machine::default() };
    let defect_without = |left_out: usize| {
        let mut model = Model::new(setup);
        for (_, event) in trace.iter().enumerate().filter(|(at, _)| *at != left_out) {
            model.apply(event);
        }
        model.verdicts().first().map(|verdict| verdict.defect)
    };
    assert_eq!(defect_without(usize::MAX), None);
    // The last two events restore the other VMID; leaving those out harms the other VM, not this one.
    let steps: Vec<_> = (first_clear..last - 2).collect();
    assert!(steps.len() >= 9, "{:?}", &trace[first_clear..last]);
    for step in steps {
        let defect = defect_without(step);
        assert!(defect.is_some(), "without {:?} nothing is wrong", trace[step]);
        assert_ne!(defect, Some(Defect::LockState));
    }
}
