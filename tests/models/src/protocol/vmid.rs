//! VMIDs that change hands: roll-overs against a CPU that enters and against a flush.
//!
//! There are two VMIDs and three VMs, so a third VM's entry is a roll-over. What is wrong shows in two ways:
//! two VMs run under one VMID at once, which a record of who runs finds, or somebody is lent a VMID that
//! a TLB still knows, or memory goes that one still reaches, which the oracle finds.

use std::sync::{Arc, Mutex};

use mmu_oracle::{Event, Machine, OracleMachine};
use stage2::vmid::{Cpu, Running, Vmids};
use stage2::{
    Arch, Bbm, Caps, Descriptor, Epochs, Errata, Features, Geometry, HwUpdate, Ipa, IpaRange,
    Level, Slot, Space, Vmid,
};

use crate::outcome::reached;
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::sched::thread;

/// PEs, each of which is one thread.
const PES: usize = 2;
/// Where the only leaf of VM 0 is, and what it maps.
const LEAF: u64 = 0x8000_0000;
const BLOCK: u64 = 2 << 20;

type Vm = Space<'static, &'static OracleMachine, &'static OracleMachine>;

/// A machine with three VMs.
struct Ground {
    // First, so that they are dropped before what they borrow.
    vms: [Vm; 3],
    vmids: Box<Vmids<PES>>,
    _epochs: Box<Epochs<PES>>,
    machine: Box<OracleMachine>,
    /// VMIDs and the VMs that PEs run under them now. Plain data: it orders nothing.
    runs: Mutex<Vec<(u16, usize)>>,
    /// What guests do: a store, so that the checker lets another PE enter meanwhile.
    beat: AtomicU64,
}

/// Extends a borrow.
///
/// # Safety
/// 1. The box outlives the reference, and so does what is in it.
unsafe fn forever<T>(boxed: &T) -> &'static T {
    // SAFETY: (1) the caller's clause.
    unsafe { &*core::ptr::from_ref(boxed) }
}

impl Ground {
    fn new() -> Arc<Self> {
        let caps = Caps::GRANULE_4K;
        let features = Features { caps, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
        let geometry = Geometry::new(30, &features, HwUpdate::Off).unwrap();
        let setup = Machine {
            pes: PES,
            start_level: geometry.start() as u8,
            root_pages: geometry.root_tables() as u64,
            ..Machine::default()
        };
        let [first, last] = [1, 2].map(|vmid| Vmid::new(vmid, 8).unwrap());
        let vmids = Box::new(Vmids::between(first, last));
        let (epochs, machine) = (Box::new(Epochs::new()), Box::new(OracleMachine::new(setup, 3)));
        let vms = [0, 1, 2].map(|_| {
            // SAFETY: (1) the boxes stay with the VMs, which are dropped first.
            let (vmids, epochs, machine) =
                unsafe { (forever(&*vmids), forever(&*epochs), forever(&*machine)) };
            Space::new(geometry, vmids, epochs.domain(), machine, machine).unwrap()
        });
        Arc::new(Self {
            vms,
            vmids,
            _epochs: epochs,
            machine,
            runs: Mutex::default(),
            beat: AtomicU64::new(0),
        })
    }

    fn machine(&self) -> &OracleMachine {
        &self.machine
    }

    fn vm(&self, vm: usize) -> &Vm {
        &self.vms[vm]
    }

    fn cpu(&self, pe: usize) -> Cpu<'_> {
        self.vmids.join(pe).expect("each PE is one thread")
    }

    /// Runs `work` while PE `pe` runs the VM.
    fn run<T>(&self, pe: usize, vm: usize, work: impl FnOnce(u16) -> T) -> T {
        self.machine().on_pe(pe, || {
            let mut cpu = self.cpu(pe);
            // SAFETY: (1, 2) a PE runs one VM at a time, and only here.
            let running: Running<'_, _> =
                unsafe { self.vm(vm).enter(&mut cpu, pe as u16) }.unwrap();
            let vmid = running.vmid().get();
            {
                let mut runs = self.runs.lock().unwrap();
                for (other, whose) in runs.iter() {
                    assert!(
                        *other != vmid || *whose == vm,
                        "VMs {whose} and {vm} run under VMID {vmid}"
                    );
                    assert!(*whose != vm || *other == vmid, "VM {vm} has VMIDs {other} and {vmid}");
                }
                runs.push((vmid, vm));
            }
            self.beat.store(1, Ordering::Relaxed);
            let result = work(vmid);
            let mut runs = self.runs.lock().unwrap();
            let at = runs.iter().position(|run| *run == (vmid, vm)).unwrap();
            runs.remove(at);
            drop(runs);
            drop(running);
            result
        })
    }

    /// The slot of VM 0 that holds the leaf.
    fn slot(&self) -> &Slot {
        // SAFETY: (1) the root lives as long as the VM.
        unsafe { self.machine().table_at(self.vm(0).root()) }.slot(0)
    }

    fn write_leaf(&self) {
        let table =
            Descriptor::from_bits(LEAF | 1 << 56 | 1 << 10 | 0b11 << 8 | 0b11 << 6 | 0xf << 2 | 1);
        // SAFETY: (1, 2) nobody walks these tables yet.
        unsafe { (&self.machine()).swap(self.slot(), table.bits()) };
        (&self.machine()).dsb(stage2::arch::Dsb::Ish);
    }

    /// Takes the leaf of VM 0 away, and its memory.
    fn take_away(&self) {
        let (machine, range) = (self.machine(), IpaRange::new(Ipa::new(0), BLOCK).unwrap());
        // SAFETY: (1) this PE alone changes the slot.
        let drained = unsafe { self.slot().clear(&machine, Level::L2) }.expect("live");
        let flushed = self.vm(0).tlb().reduce(range, stage2::tlbi::LeafLevel::L2);
        // SAFETY: (1) flushed above.
        unsafe { drained.release(&machine, &flushed) };
        machine.note(|pe| Event::FreeFrame { pe, frame: LEAF, bytes: BLOCK });
    }

    fn settle(&self) {
        let verdicts = self.machine().verdicts();
        assert!(verdicts.is_empty(), "the oracle's verdict: {verdicts:?}");
    }
}

/// PE 0 enters VM 0, which has a VMID, while PE 1 enters two others: the second needs a roll-over.
pub fn entry_against_roll_over() {
    let ground = Ground::new();
    ground.write_leaf();
    let first = ground.run(0, 0, |vmid| vmid);
    let other = {
        let ground = Arc::clone(&ground);
        thread::spawn(move || {
            ground.run(1, 1, |_| ());
            ground.run(1, 2, |vmid| vmid)
        })
    };
    let second = ground.run(0, 0, |vmid| vmid);
    let lent = other.join().unwrap();
    reached(if second == first { "kept its VMID" } else { "was lent another" });
    reached(if lent == first { "its VMID was lent" } else { "its VMID was not lent" });
    ground.settle();
}

/// PE 0 takes memory away from VM 0, which runs nowhere, while PE 1 rolls over and runs it again.
pub fn flush_against_roll_over() {
    let ground = Ground::new();
    ground.write_leaf();
    let first = ground.run(0, 0, |vmid| vmid);
    let other = {
        let ground = Arc::clone(&ground);
        thread::spawn(move || {
            ground.run(1, 1, |_| ());
            ground.run(1, 2, |_| ());
            ground.run(1, 0, |vmid| vmid)
        })
    };
    ground.machine().on_pe(0, || ground.take_away());
    let second = other.join().unwrap();
    reached(if second == first { "kept its VMID" } else { "was lent another" });
    ground.settle();
}
