//! One VM on a machine whose memory is dirty.
//!
//! Table pages that nobody has allocated hold rubbish, and so does a frame that nobody has taken: an
//! allocation writes the zeros, and `take` the content, as hypervisors do. So a PE that reaches a page
//! or a frame before these stores are visible to it reads rubbish, which no assertion overlooks.
//! The stores need no order of their own: who publishes the page gives it to them. A page that one PE
//! gives back and another is given passes through a pool, whose lock orders the two.
//!
//! What belongs to the test (which pages are allocated, the oracle) is plain data behind plain locks
//! that no checker sees and that are never held across an access.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use mmu_oracle::{Event, Machine, OracleMachine};
use stage2::vmid::Vmids;
use stage2::{
    Attributes, Bbm, Caps, Descriptor, Epochs, Errata, Features, Geometry, HwUpdate, Ipa, Level,
    MemType, PAGE_SIZE, Pa, Prot, Scratch, Space, View, Vmid, Write,
};

use crate::sched::atomic::{AtomicU64, Ordering};
use crate::sched::thread;

mod hardware;
mod pe;
pub use hardware::Hardware;
pub use pe::Pe;

/// PEs of every machine here.
pub const PES: usize = 4;
/// What an unallocated table page holds: valid to hardware, and nothing that `stage2` ever writes.
pub const RUBBISH: u64 = 0xfc00_0bad_0bad_0bad;
/// What a frame holds that was never filled: its last owner's secret.
pub const SECRET: u64 = 0x5ec7_e7;
/// What a filled frame holds.
pub const FILLED: u64 = 0;
/// What the scratch page holds that nobody has written.
pub const PATTERN: u64 = 0x5c5c_5c5c;

/// Frames start here, each at the start of a block of its own: good for pages and for blocks.
const FRAMES: u64 = 0x8000_0000;
const FRAME_STRIDE: u64 = 2 << 20;
/// Pages of a frame that have content: as many as a table has slots here.
const FRAME_PAGES: usize = 4;

/// The shape of a world.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// 30 makes two levels of tables, 39 three.
    pub ipa_bits: u32,
    /// Table pages in the machine, the root included.
    pub tables: usize,
    /// Frames in the machine.
    pub frames: usize,
    /// What hardware updates.
    pub hw_update: HwUpdate,
    /// How sizes may change.
    pub bbm: Bbm,
}

impl Shape {
    /// Two levels, nothing updated by hardware, sizes changed by a break.
    #[must_use]
    pub const fn small(tables: usize, frames: usize) -> Self {
        Self { ipa_bits: 30, tables, frames, hw_update: HwUpdate::Off, bbm: Bbm::Level0 }
    }
}

/// One VM, and the machine under it.
#[derive(Debug)]
pub struct World {
    // First, so that it is dropped before what it borrows.
    space: Space<'static, Hardware, Hardware>,
    epochs: Box<Epochs<PES>>,
    vmids: Box<Vmids<PES>>,
    hardware: Hardware,
    /// One word for each page of a frame; the last is the scratch page.
    frames: Vec<[AtomicU64; FRAME_PAGES]>,
    /// Frames that are mapped or at hand of no PE's.
    taken: Mutex<BTreeSet<u64>>,
    /// What an install maps.
    leaf: Attributes,
    /// Threads that have not ended.
    running: AtomicUsize,
}

/// The address of a page by its number.
#[must_use]
pub const fn page(number: u64) -> Ipa {
    Ipa::new(number * PAGE_SIZE)
}

impl World {
    /// A VM with empty tables, running on every PE.
    ///
    /// # Panics
    /// When the shape is impossible.
    #[must_use]
    pub fn new(shape: Shape) -> Arc<Self> {
        let caps =
            Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY | Caps::TLBI_RANGE | Caps::TTL;
        let features = Features { caps, bbm: shape.bbm, pa_bits: 40, errata: Errata::empty() };
        let geometry = Geometry::new(shape.ipa_bits, &features, shape.hw_update).unwrap();
        let machine = Machine {
            pes: PES,
            start_level: geometry.start() as u8,
            root_pages: geometry.root_tables() as u64,
            bbm: shape.bbm as u8,
            hw_access: shape.hw_update != HwUpdate::Off,
            hw_dirty: shape.hw_update == HwUpdate::AccessAndDirty,
            dead: Some(Descriptor::DEAD.bits()),
        };
        let hardware = Hardware::new(machine, shape.tables);
        let epochs = Box::new(Epochs::new());
        // SAFETY: (1) the box does not move, and the space, the only borrower, is dropped before it.
        let borrowed: &'static Epochs<PES> = unsafe { &*core::ptr::from_ref(&*epochs) };
        let vmids = Box::new(Vmids::only(Vmid::new(1, 8).unwrap()));
        // SAFETY: (1) as above.
        let lenders: &'static Vmids<PES> = unsafe { &*core::ptr::from_ref(&*vmids) };
        let (memory, arch) = (hardware.clone(), hardware.clone());
        let space = Space::new(geometry, lenders, borrowed.domain(), memory, arch).unwrap();
        let root = space.root();
        for table in geometry.root_tables()..shape.tables {
            hardware.fill(Pa::new(root.get() + table as u64 * PAGE_SIZE), RUBBISH);
        }
        let secret = |_| AtomicU64::new(SECRET);
        let pattern = || [(); FRAME_PAGES].map(|()| AtomicU64::new(PATTERN));
        let own = (0..shape.frames).map(|_| core::array::from_fn(secret));
        let frames = own.chain(core::iter::once_with(pattern)).collect();
        let mut leaf = Attributes::new(Prot::RWX, MemType::Normal);
        if shape.hw_update == HwUpdate::AccessAndDirty {
            // Hardware has both to record.
            (leaf.write, leaf.accessed) = (Write::Clean, false);
        }
        let (taken, running) = (Mutex::default(), AtomicUsize::new(0));
        let world = Self { space, epochs, vmids, hardware, frames, taken, leaf, running };
        (0..PES).for_each(|pe| world.on(pe, || world.enter_guest(pe)));
        Arc::new(world)
    }

    /// Runs `work` as PE `pe`, with these frames at hand.
    pub fn pe<T>(&self, pe: usize, frames: &[usize], work: impl FnOnce(&Pe<'_>) -> T) -> T {
        self.on(pe, || {
            let cpu = self.epochs.join(pe).expect("each PE is one thread");
            work(&Pe::new(self, cpu, frames))
        })
    }

    /// Runs `work` as PE `pe` on a thread of its own.
    pub fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        pe: usize,
        frames: &'static [usize],
        work: impl FnOnce(&Pe<'_>) -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        self.thread(move |world| world.pe(pe, frames, work))
    }

    /// Runs `work` on a thread of its own, as no PE yet.
    pub fn thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        self.running.fetch_add(1, Ordering::Relaxed);
        let world = Arc::clone(self);
        thread::spawn(move || {
            let result = work(&world);
            world.running.fetch_sub(1, Ordering::Relaxed);
            result
        })
    }

    /// What a wait does between two looks: lets the others run, as long as there are any.
    ///
    /// # Panics
    /// When it is called again and again though every other thread has ended.
    pub fn patience(&self) -> impl FnMut() {
        let mut alone = 0;
        move || {
            if self.running.load(Ordering::Relaxed) == 0 {
                alone += 1;
                assert!(alone < 8, "it waits though every guard has closed");
            }
            thread::yield_now();
        }
    }

    /// The VM's tables.
    #[must_use]
    pub const fn space(&self) -> &Space<'static, Hardware, Hardware> {
        &self.space
    }

    /// The machine's primitives and memory.
    #[must_use]
    pub const fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// The PEs' counters.
    #[must_use]
    pub const fn epochs(&self) -> &Epochs<PES> {
        &self.epochs
    }

    /// The machine that judges.
    #[must_use]
    pub fn oracle(&self) -> &OracleMachine {
        self.hardware.oracle()
    }

    /// The page of the root that serves `ipa`.
    #[must_use]
    pub fn root(&self, ipa: Ipa) -> Pa {
        self.space.geometry().root_page(self.space.root(), ipa)
    }

    /// The content of the page of a frame at `pa`.
    #[must_use]
    pub fn frame(&self, pa: Pa) -> &AtomicU64 {
        let (frame, offset) = ((pa.get() - FRAMES) / FRAME_STRIDE, pa.get() % FRAME_STRIDE);
        &self.frames[frame as usize][(offset / PAGE_SIZE) as usize]
    }

    /// The frame at `pa` serves something else from now on.
    ///
    /// # Panics
    /// If it was free already.
    pub fn free_frame(&self, pa: Pa) {
        self.oracle().note(|pe| Event::FreeFrame { pe, frame: pa.get(), bytes: PAGE_SIZE });
        assert!(lock(&self.taken).remove(&pa.get()), "frame {pa} was freed twice");
    }

    /// What an install and a map map.
    #[must_use]
    pub const fn leaf(&self) -> &Attributes {
        &self.leaf
    }

    /// The VM's scratch page, behind all frames.
    ///
    /// # Panics
    /// Never: there is a descriptor for it.
    #[must_use]
    pub fn scratch(&self) -> Scratch {
        let last = self.frames.len() - 1;
        // SAFETY: (1) no frame of any other's, and there as long as the world; (2) there are no caches; (3) as is the space.
        let made = unsafe { self.space.scratch(Pa::new(FRAMES + last as u64 * FRAME_STRIDE)) };
        made.expect("a page")
    }

    /// Memory from frame `number` on, as many bytes, filled: for a map.
    ///
    /// # Panics
    /// If some of it is in use.
    pub fn take_memory(&self, number: usize, bytes: u64) -> Pa {
        let start = Pa::new(FRAMES + number as u64 * FRAME_STRIDE);
        self.enter_taken(start, bytes);
        for page in (0..bytes).step_by(PAGE_SIZE as usize) {
            self.frame(Pa::new(start.get() + page)).store(FILLED, Ordering::Relaxed);
        }
        start
    }

    /// These pages are taken, too.
    ///
    /// # Panics
    /// If some of them were.
    pub fn enter_taken(&self, start: Pa, bytes: u64) {
        for page in (0..bytes).step_by(PAGE_SIZE as usize) {
            assert!(lock(&self.taken).insert(start.get() + page), "memory was taken twice");
        }
    }

    /// These pages are counted no more, and stay as they are: a block counts once, by where it begins.
    ///
    /// # Panics
    /// If some of them were not taken.
    pub fn forget_taken(&self, start: Pa, bytes: u64) {
        for page in (0..bytes).step_by(PAGE_SIZE as usize) {
            assert!(lock(&self.taken).remove(&(start.get() + page)), "memory was not taken");
        }
    }

    /// Memory that was taken and not mapped.
    ///
    /// # Panics
    /// If it was free already.
    pub fn give_memory(&self, start: Pa, bytes: u64) {
        for page in (0..bytes).step_by(PAGE_SIZE as usize) {
            let pa = Pa::new(start.get() + page);
            self.frame(pa).store(SECRET, Ordering::Relaxed);
            assert!(lock(&self.taken).remove(&pa.get()), "memory was given back twice");
        }
    }

    /// To be called when every thread has ended: nothing leaked, nothing was given back twice, nothing
    /// is wrong with the tables, and the oracle saw nothing wrong on the way.
    ///
    /// # Panics
    /// Otherwise.
    pub fn settle(&self) {
        let mut tables = BTreeSet::new();
        let mut frames = BTreeSet::new();
        let geometry = self.space.geometry();
        for page in 0..geometry.root_tables() as u64 {
            let root = Pa::new(self.root(Ipa::new(0)).get() + page * PAGE_SIZE);
            self.collect(root, geometry.start(), &mut tables, &mut frames);
        }
        if let Some(root) = self.space.window_root() {
            self.collect_window(root, Level::L1, Ipa::new(0), &mut tables);
        }
        assert_eq!(tables, self.hardware.allocated(), "tables linked, and allocated");
        assert_eq!(frames, *lock(&self.taken), "frames mapped, and taken");
        let verdicts = self.oracle().verdicts();
        assert!(verdicts.is_empty(), "the oracle's verdict: {verdicts:?}");
    }

    fn collect(
        &self,
        table: Pa,
        level: Level,
        tables: &mut BTreeSet<u64>,
        frames: &mut BTreeSet<u64>,
    ) {
        assert!(tables.insert(table.get()), "table {table} is linked twice");
        for slot in self.hardware.slots(table) {
            match (slot.load(&self.hardware).view(level), level.next()) {
                (View::Table(below), Some(next)) => self.collect(below, next, tables, frames),
                (View::Leaf(leaf), _) if self.scratch().is_behind(&leaf) => {}
                (View::Leaf(leaf), _) => {
                    assert!(frames.insert(leaf.pa().get()), "a frame is mapped twice");
                }
                (View::Empty | View::Note(_), _) => {}
                (other, _) => panic!("{other:?} was left behind in table {table}"),
            }
        }
    }

    fn enter_guest(&self, pe: usize) {
        let mut cpu = self.vmids.join(pe).expect("each PE once");
        // SAFETY: (1, 2) there is no other VM.
        core::mem::forget(unsafe { self.space.enter(&mut cpu, pe as u16) }.expect("a VMID"));
    }

    fn on<T>(&self, pe: usize, work: impl FnOnce() -> T) -> T {
        self.oracle().on_pe(pe, work)
    }
}

/// A poisoned lock guards only a record.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
