//! A machine with VMs, and what hardware makes of their tables.
//!
//! [`Rig::translate`] is a walk by the letter of the Arm ARM, D8.2 and D8.3, from the registers
//! VTCR_EL2 and VTTBR_EL2 alone. It shares no code with what it checks.

use std::collections::BTreeSet;
use std::sync::Mutex;

use mmu_oracle::{Event, Machine, OracleMachine};
use stage2::addr::PAGE_SIZE;
use stage2::slot::Drained;
use stage2::space::Frames;
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Geometry, HwUpdate, Install,
    InstallError, Ipa, IpaRange, Level, MemType, Memory, Owner, Pa, Prot, Slot, Space, Table,
    TableMeta, Tally, Vmid,
};

/// PEs, and CPUs of the epochs.
pub(crate) const PES: usize = 2;
/// Table pages of a machine.
const PAGES: usize = 96;
/// By their numbers.
pub(crate) const LEVELS: [Level; 4] = [Level::L0, Level::L1, Level::L2, Level::L3];
/// Where the oracle's table pages begin.
const ARENA: u64 = 0x10_0000;

/// The combinations that choose between forms of TLBI.
pub(crate) const TLBI_CAPS: [Caps; 4] =
    [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE, Caps::TLBI_RANGE.union(Caps::TTL)];

/// The VMIDs of a machine: two, the first of which is lent first.
pub(crate) const VMIDS: [u16; 2] = [3, 4];

/// One machine, and the epochs of its CPUs.
pub(crate) struct Rig {
    pub(crate) machine: OracleMachine,
    pub(crate) epochs: Epochs<PES>,
    pub(crate) vmids: Vmids<PES>,
    geometry: Geometry,
    /// Table pages in use.
    live: Mutex<BTreeSet<u64>>,
}

/// Table pages of the oracle's machine, each of which is in use or not.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'r>(&'r Rig);

pub(crate) type Vm<'r> = Space<'r, Tables<'r>, &'r OracleMachine>;

// SAFETY: (1-3) as of the oracle's machine, which does the work.
unsafe impl Memory for Tables<'_> {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        let pa = (&self.0.machine).alloc_table(pages)?;
        let taken = (0..pages as u64).map(|page| pa.get() + page * PAGE_SIZE);
        self.0.live.lock().unwrap().extend(taken);
        Some(pa)
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        for page in 0..pages as u64 {
            let known = self.0.live.lock().unwrap().remove(&(pa.get() + page * PAGE_SIZE));
            assert!(known, "table page {pa} was given back twice");
        }
        // SAFETY: the caller's clauses.
        unsafe { (&self.0.machine).free_table(pa, pages) };
    }

    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        // SAFETY: the caller's clause.
        unsafe { self.0.machine.meta_at(pa) }
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        // SAFETY: the caller's clause.
        unsafe { self.0.machine.table_at(pa) }
    }
}

/// What hardware finds for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) pa: u64,
    pub(crate) level: u8,
    /// The leaf, without its address.
    pub(crate) bits: u64,
}

impl Rig {
    pub(crate) fn new(ipa_bits: u32, caps: Caps) -> Self {
        Self::with(ipa_bits, caps, HwUpdate::Off, PES)
    }

    pub(crate) fn with(ipa_bits: u32, caps: Caps, hw_update: HwUpdate, pes: usize) -> Self {
        let pa_bits = if ipa_bits > 40 { 48 } else { 40 };
        let features = Features {
            caps: caps | Caps::GRANULE_4K,
            bbm: Bbm::Level0,
            pa_bits,
            errata: Errata::empty(),
        };
        let geometry = Geometry::new(ipa_bits, &features, hw_update).unwrap();
        let (start_level, top_bits) = start_of(geometry.vtcr());
        let machine = Machine {
            pes,
            start_level,
            root_pages: 1 << top_bits.saturating_sub(9),
            hw_access: hw_update != HwUpdate::Off,
            hw_dirty: hw_update == HwUpdate::AccessAndDirty,
            ..Machine::default()
        };
        let machine = OracleMachine::new(machine, PAGES);
        let [first, last] = VMIDS.map(|vmid| Vmid::new(vmid, 8).unwrap());
        let vmids = Vmids::between(first, last);
        Self { machine, epochs: Epochs::new(), vmids, geometry, live: Mutex::default() }
    }

    /// What the machine has.
    pub(crate) fn caps(&self) -> Caps {
        self.geometry.features().caps
    }

    pub(crate) fn vm(&self) -> Vm<'_> {
        let (vmids, epochs) = (&self.vmids, self.epochs.domain());
        Space::new(self.geometry, vmids, epochs, Tables(self), &self.machine).unwrap()
    }

    /// PE `pe` goes on with a guest of the VM, until it enters another one. Returns the VMID.
    pub(crate) fn enter(&self, vm: &Vm<'_>, pe: usize) -> u16 {
        self.machine.on_pe(pe, || {
            let mut cpu = self.vmids.join(pe).expect("one guest a PE");
            // SAFETY: (1, 2) the guest of a PE is who was entered last.
            let running = unsafe { vm.enter(&mut cpu, 0) }.unwrap();
            let vmid = running.vmid();
            core::mem::forget(running);
            vmid.get()
        })
    }

    pub(crate) fn vttbr(&self, pe: usize) -> u64 {
        self.machine.on_pe(pe, || (&self.machine).vttbr())
    }

    /// What a walk of PE `pe` finds for `ipa`, by the registers as they are.
    pub(crate) fn translate(&self, pe: usize, ipa: u64) -> Option<Found> {
        self.walk(self.vttbr(pe), ipa).1
    }

    /// The slot in which a walk of the VM for `ipa` ends.
    pub(crate) fn slot(&self, vm: &Vm<'_>, ipa: u64) -> &Slot {
        self.walk(vm.root().get(), ipa).0.expect("the address has a slot").0
    }

    /// The slot of `level` on the way of the VM to `ipa`, found as hardware finds it.
    pub(crate) fn slot_at(&self, vm: &Vm<'_>, ipa: u64, level: u8) -> &Slot {
        let (slot, found) =
            self.walk_to(vm.root().get(), ipa, level).0.expect("the address has a slot");
        assert_eq!(found, level, "the walk ends above");
        slot
    }

    /// The level of the slot where the VM's walk to `ipa` ends.
    pub(crate) fn level(&self, vm: &Vm<'_>, ipa: u64) -> Level {
        LEVELS[usize::from(self.walk(vm.root().get(), ipa).0.expect("the address has a slot").1)]
    }

    /// Table pages that a walk by the VM's root can reach.
    pub(crate) fn reachable(&self, vm: &Vm<'_>) -> usize {
        let (start, bits) = start_of(self.geometry.vtcr());
        let root = vm.root().get();
        let pages = 1u64 << bits.saturating_sub(9);
        let mut todo: Vec<(u64, u8)> =
            (0..pages).map(|page| (root + page * PAGE_SIZE, start)).collect();
        let mut seen = BTreeSet::new();
        while let Some((table, level)) = todo.pop() {
            assert!(seen.insert(table), "table {table:#x} is linked twice");
            // SAFETY: (1) linked, and freed by nobody meanwhile.
            let slots = unsafe { self.machine.table_at(Pa::new(table)) }.slots();
            let bits = slots.iter().map(|slot| slot.load(&&self.machine).bits());
            let below = bits.filter(|bits| level < 3 && bits & 0b11 == 0b11);
            todo.extend(below.map(|bits| (bits & 0x0000_ffff_ffff_f000, level + 1)));
        }
        seen.len()
    }

    /// The last slot of a walk with its level, and the leaf in it. There is no slot beyond the IPA size, nor
    /// where no table is.
    fn walk(&self, vttbr: u64, ipa: u64) -> (Option<(&Slot, u8)>, Option<Found>) {
        self.walk_to(vttbr, ipa, 3)
    }

    /// A walk that looks no further than `stop`.
    fn walk_to(&self, vttbr: u64, ipa: u64, stop: u8) -> (Option<(&Slot, u8)>, Option<Found>) {
        let (mut level, bits) = start_of(self.geometry.vtcr());
        if ipa >> (shift(level) + bits) != 0 {
            return (None, None);
        }
        // The base is aligned to the size of the concatenated tables [RVCLZN].
        let size = 8u64 << bits;
        let mut table = vttbr & 0x0000_ffff_ffff_fffe & !(size.max(64) - 1);
        let mut index = ipa >> shift(level);
        let mut last = None;
        loop {
            let address = table + index * 8;
            let Some(offset) = address.checked_sub(ARENA).filter(|o| *o < PAGES as u64 * PAGE_SIZE)
            else {
                return (last, None);
            };
            let page = Pa::new(ARENA + offset / PAGE_SIZE * PAGE_SIZE);
            // SAFETY: (1) a page of the arena.
            let slot =
                unsafe { self.machine.table_at(page) }.slot((address % PAGE_SIZE / 8) as usize);
            last = Some((slot, level));
            let bits = slot.load(&&self.machine).bits();
            let output = bits & 0x0000_ffff_ffff_f000;
            match (bits & 0b11, level) {
                (0b11, 0..=2) if level < stop => {
                    table = output;
                    level += 1;
                    index = ipa >> shift(level) & 511;
                }
                (0b01, 1 | 2) | (0b11, 3) => {
                    let inside = (1u64 << shift(level)) - 1;
                    let pa = output & !inside | ipa & inside;
                    return (last, Some(Found { pa, level, bits: bits & !0x0000_ffff_ffff_f000 }));
                }
                _ => return (last, None),
            }
        }
    }

    /// Table pages that were taken and not given back.
    pub(crate) fn live(&self) -> usize {
        self.live.lock().unwrap().len()
    }

    /// Fails with the verdicts, if there are any.
    #[track_caller]
    pub(crate) fn assert_sound(&self, what: &dyn core::fmt::Debug) {
        let verdicts = self.machine.verdicts();
        if let Some(verdict) = verdicts.first() {
            panic!("{what:?}: {} verdicts, the first: {verdict}", verdicts.len());
        }
    }

    /// Software goes on as if no PE used anything but the tables as they are.
    pub(crate) fn relies_on_flush(&self, vmid: u16, range: IpaRange) {
        let span = mmu_oracle::event::Span { ipa: range.start().get(), bytes: range.bytes() };
        self.machine.note(|pe| Event::Flushed { pe, vmid, span: Some(span) });
    }

    pub(crate) fn free_frame(&self, frame: u64, bytes: u64) {
        self.machine.note(|pe| Event::FreeFrame { pe, frame, bytes });
    }
}

/// log2 of the bytes that a slot of `level` translates, for the 4 KiB granule.
const fn shift(level: u8) -> u32 {
    12 + 9 * (3 - level) as u32
}

/// Start level, and bits of the address that index the root: VTCR_EL2.SL0 and T0SZ (D8.2, table D8-20).
fn start_of(vtcr: u64) -> (u8, u32) {
    let level = match vtcr >> 6 & 0b11 {
        0b00 => 2,
        0b01 => 1,
        0b10 => 0,
        other => panic!("SL0 is {other:#b}"),
    };
    let bits = 64 - (vtcr & 0x3f) as u32 - shift(level);
    assert!((1..=13).contains(&bits), "a root of {bits} index bits");
    (level, bits)
}

/// Frames as a pool: each is in it, or in somebody's hands.
pub(crate) struct Pool {
    free: Vec<u64>,
    size: u64,
    taken: BTreeSet<u64>,
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Frames for Pool {
    fn take(&mut self) -> Option<Pa> {
        let frame = self.free.pop()?;
        self.taken.insert(frame);
        Some(Pa::new(frame))
    }

    fn give_back(&mut self, frame: Pa) {
        assert!(self.taken.remove(&frame.get()), "frame {frame} was given back twice");
        self.free.push(frame.get());
    }
}

impl Pool {
    /// `count` frames of a level's size, from 2 GiB times `number`, which tells pools apart.
    pub(crate) fn new(number: u64, level: Level, count: u64) -> Self {
        let size = level.slot_bytes();
        let first = number << 33;
        let free = (0..count).rev().map(|n| first + n * size).collect();
        Self { free, size, taken: BTreeSet::new() }
    }

    /// Bytes of a frame.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Frames that were taken and not given back.
    pub(crate) fn taken(&self) -> &BTreeSet<u64> {
        &self.taken
    }
}

pub(crate) fn ram() -> Attributes {
    Attributes::new(Prot::RWX, MemType::Normal)
}

/// What an install says, and what it counted.
pub(crate) type Said = (Result<Install, InstallError>, Tally);

/// Installs a frame of the pool at `ipa` on behalf of CPU `cpu`, as a fault handler does.
pub(crate) fn fault(
    rig: &Rig,
    vm: &Vm<'_>,
    cpu: usize,
    ipa: u64,
    level: Level,
    pool: &mut Pool,
) -> Said {
    let mapping = vm.mapping(level, &ram(), Owner::Vm).unwrap();
    let mut tally = Tally::default();
    let result = rig.machine.on_pe(cpu, || {
        let cpu = rig.epochs.join(cpu).expect("one handler a CPU");
        let guard = cpu.enter();
        let result = vm.install(&guard, Ipa::new(ipa), &mapping, pool, &mut tally);
        // What it linked and mapped is there for every walk, however it ended.
        rig.machine.note(|pe| Event::Published { pe });
        result
    });
    (result, tally)
}

/// Installs, and checks that hardware finds it.
#[track_caller]
pub(crate) fn map(rig: &Rig, vm: &Vm<'_>, ipa: u64, level: Level, pool: &mut Pool) -> u64 {
    match fault(rig, vm, 0, ipa, level, pool).0 {
        Ok(Install::Installed(pa)) => pa.get(),
        other => panic!("nothing was installed at {ipa:#x}: {other:?}"),
    }
}

pub(crate) fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

/// Takes the leaf of each address out of its slot: the flush is owed.
pub(crate) fn drain<'r>(rig: &'r Rig, vm: &Vm<'_>, ipas: &[u64]) -> Vec<Drained<'r>> {
    let clear = |ipa: &u64| {
        let slot = rig.slot(vm, *ipa);
        // SAFETY: (1) live, and one thread changes these tables.
        unsafe { slot.clear(&&rig.machine, rig.level(vm, *ipa)) }.expect("it is live")
    };
    ipas.iter().map(clear).collect()
}
