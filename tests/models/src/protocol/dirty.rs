//! Dirty sessions against those who write: EL2, guests by faults, by hardware and by what their TLBs hold; against an unmap,
//! an install, and decisions from before the session.
//!
//! Who takes a bit out copies the page. In the end every page is as its copy says, or the next harvest will tell.

use std::sync::Arc;

use mmu_oracle::Event;
use mmu_oracle::walker::{Access as Purpose, Choice, Outcome, Walk};
use stage2::space::{Batch, Bitmaps, LogBlocks, Notes, Progress, WriteError};
use stage2::window::Recovered;
use stage2::{
    Attributes, Descriptor, Frames, HwUpdate, InstallError, Leaf, Level, MemType, Owner, PAGE_SIZE,
    Pa, Prot, Tally, View,
};

use super::alike;
use crate::el2::{El2Access, TABLES};
use crate::outcome::reached;
use crate::ranges::pages;
use crate::sched::atomic::{AtomicU64, Ordering, fence};
use crate::sched::thread;
use crate::world::{FILLED, Pe, Shape, World, page};

/// What somebody writes into page 1.
const WRITTEN: u64 = 0xbeef;
/// The page that everybody is about.
const PAGE: u64 = 1;

/// The bitmaps of a session on the first four pages, and what was copied of page 1.
struct Log {
    pages: Vec<AtomicU64>,
    spans: Vec<AtomicU64>,
    /// Read and written by one thread at a time, between which there is an order.
    copy: AtomicU64,
}

impl Log {
    fn new() -> Arc<Self> {
        let [pages, spans] = Bitmaps::words(pages(0, 4))
            .map(|count| (0..count).map(|_| AtomicU64::new(0)).collect());
        Arc::new(Self { pages, spans, copy: AtomicU64::new(FILLED) })
    }

    fn start(&self, pe: &Pe<'_>) {
        let (mut claim, _) = pe.claim(pages(0, 4));
        let bitmaps = Bitmaps { pages: &self.pages, spans: &self.spans };
        let relax = pe.world.patience();
        // SAFETY: (1) each case drops its world before the log.
        let started = unsafe {
            pe.world.space().dirty_start(&pe.cpu, &mut claim, &bitmaps, LogBlocks::Keep, relax)
        };
        assert_eq!(started, Ok(()));
    }

    /// Takes the bits of all pages; copies page 1 if it is among them, after which everything that happened before the bit
    /// was set has happened.
    fn take(&self, world: &World, read: impl FnOnce(&AtomicU64) -> u64) -> bool {
        let told = self.pages[0].swap(0, Ordering::Acquire) >> PAGE & 1 != 0;
        if told && let Some(leaf) = leaf(world) {
            self.copy.store(read(world.frame(leaf.pa())), Ordering::Relaxed);
        }
        told
    }

    /// The copy of page 1 is what the page holds, or a harvest will tell.
    fn judge(&self, world: &World) {
        let leaf = leaf(world).expect("page 1 is mapped");
        let content = world.frame(leaf.pa()).load(Ordering::Relaxed);
        let known = self.copy.load(Ordering::Relaxed) == content;
        let told = self.pages[0].load(Ordering::Relaxed) >> PAGE & 1 != 0;
        assert!(known || told || leaf.may_be_written(), "a write is lost");
        reached(if known { "copied" } else { "told by the next" });
    }
}

/// Page 1, as it is mapped.
fn leaf(world: &World) -> Option<Leaf> {
    match world.walk(page(PAGE)).view() {
        View::Leaf(leaf) => Some(leaf),
        _ => None,
    }
}

/// What was written, without an order by which it must be seen.
fn plainly(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// What was written last: by a guest whose stores a barrier has completed.
fn the_last(word: &AtomicU64) -> u64 {
    word.fetch_or(0, Ordering::AcqRel)
}

fn harvest(pe: &Pe<'_>) {
    let (mut claim, _) = pe.claim(pages(0, 4));
    let all = Batch::all_of(&claim);
    let done = pe.world.space().dirty_harvest(&pe.cpu, &mut claim, all).expect("a session runs");
    assert_eq!(done.progress, Progress::Done);
}

/// EL2 writes page 1, again and again until it is recorded.
fn write(pe: &Pe<'_>) {
    loop {
        let guard = pe.cpu.enter();
        let done = pe.world.space().write_through(&guard, page(PAGE), |pa| {
            pe.world.frame(pa).store(WRITTEN, Ordering::Relaxed);
        });
        drop(guard);
        match done {
            Ok(()) => return,
            Err(WriteError::Again { .. }) => reached("again"),
            Err(error) => panic!("{error}"),
        }
        thread::yield_now();
    }
}

/// The same by way of EL2's window, whose fault is recovered in between.
fn write_by_window(pe: &Pe<'_>) {
    loop {
        let guard = pe.cpu.enter();
        let done = pe.world.space().write_through(&guard, page(PAGE), |_| {
            let store = || {
                pe.el2_word(PAGE)?.store(WRITTEN, Ordering::Relaxed);
                Some(())
            };
            pe.el2(PAGE, true, store)
        });
        drop(guard);
        match done {
            Ok(El2Access::Done(())) => return,
            Ok(El2Access::Ended(Recovered::Retry)) | Err(WriteError::Again { .. }) => {
                reached("again");
            }
            other => panic!("{other:?}"),
        }
        thread::yield_now();
    }
}

/// A world with four pages and a session that has harvested them once; page 1 is clean, or dirty.
fn logged(shape: Shape, dirty: bool) -> (Arc<Log>, Arc<World>) {
    let (log, world) = (Log::new(), World::new(shape));
    alike::map(&world);
    world.pe(0, &[], |pe| {
        log.start(pe);
        harvest(pe);
        assert!(log.take(&world, plainly), "the first harvest reports what is mapped");
        assert!(!leaf(&world).expect("mapped").may_be_written());
        if dirty {
            let _ = pe.world.space().write_through(&pe.cpu.enter(), page(PAGE), |_| ());
        }
    });
    (log, world)
}

const UPDATED: Shape = Shape { hw_update: HwUpdate::AccessAndDirty, ..Shape::small(2, 1) };

/// One PE harvests, EL2 writes on another for its guest: into a page that is dirty already, or is not.
fn against_el2(shape: Shape, dirty: bool) {
    against(&logged(shape, dirty), write);
}

fn against((log, world): &(Arc<Log>, Arc<World>), write: fn(&Pe<'_>)) {
    let writer = world.spawn(1, &[], write);
    world.pe(0, &[], |pe| {
        harvest(pe);
        log.take(world, plainly);
    });
    writer.join().unwrap();
    log.judge(world);
    finish(world);
}

/// A page that is dirty already: the write is recorded all the same.
pub fn a_harvest_against_a_write_of_el2() {
    against_el2(Shape::small(2, 1), true);
}

/// The same by way of EL2's window, which leads nowhere yet: its fault comes between the look at the leaf and the bytes.
pub fn a_harvest_against_a_write_by_el2s_window() {
    let (log, world) = logged(Shape::small(2 + TABLES, 1), true);
    world.open_window();
    against(&(log, world), write_by_window);
}

/// The same where hardware keeps the record: the harvest breaks the leaf, and EL2 may meet Busy.
pub fn a_harvest_by_a_break_against_a_write_of_el2() {
    against_el2(UPDATED, true);
}

/// Does something as a guest's access does: a barrier that completes an invalidation waits for its end, and what came before
/// a barrier is seen by a walk that begins after it.
fn as_guest<T>(world: &World, access: impl FnOnce() -> T) -> T {
    world.hardware().in_flight(|| {
        fence(Ordering::SeqCst);
        access()
    })
}

/// A guest writes page 1 if its walk finds it writable.
fn store_if_writable(world: &World) -> bool {
    as_guest(world, || {
        let writable = leaf(world).filter(Leaf::may_be_written);
        if let Some(leaf) = writable {
            world.frame(leaf.pa()).store(WRITTEN, Ordering::Relaxed);
        }
        writable.is_some()
    })
}

/// A guest's write faults, and the handler lets it; meanwhile another PE harvests.
pub fn a_harvest_against_a_write_fault() {
    let (log, world) = logged(Shape::small(2, 1), true);
    let guest = world.spawn(1, &[], |pe| {
        let granted = {
            let guard = pe.cpu.enter();
            pe.world.space().relax(&guard, page(PAGE), Prot::WRITE, Prot::RWX)
        };
        granted.expect("writable, and managed");
        reached(if store_if_writable(pe.world) { "wrote" } else { "faulted again" });
    });
    world.pe(0, &[], |pe| {
        harvest(pe);
        log.take(&world, the_last);
    });
    guest.join().unwrap();
    log.judge(&world);
    finish(&world);
}

/// A guest writes by what its TLB holds, while one PE takes the leaf's record and another takes bits as they come.
fn against_a_held_leaf(software: impl FnOnce(&Pe<'_>)) {
    let (log, world) = logged(Shape::small(2, 1), true);
    let guest = world.thread(|world| {
        as_guest(world, || {
            // Loom has to see that it matters when this is done.
            let leaf = leaf(world);
            let held = world
                .oracle()
                .with_model(|model| model.writes_by_held(2, page(PAGE).get()).is_some());
            if held && let Some(leaf) = leaf {
                world.frame(leaf.pa()).store(WRITTEN, Ordering::Relaxed);
            }
            reached(if held { "wrote by its TLB" } else { "its TLB is clean" });
        });
    });
    let taker = {
        let log = Arc::clone(&log);
        world.thread(move |world| {
            reached(if log.take(world, the_last) { "taken meanwhile" } else { "nothing yet" });
        })
    };
    world.pe(0, &[], software);
    taker.join().unwrap();
    log.take(&world, the_last);
    guest.join().unwrap();
    log.judge(&world);
    finish(&world);
}

/// The record is taken by a harvest.
pub fn a_harvest_against_a_held_leaf() {
    against_a_held_leaf(harvest);
}

/// The record is taken by who write-protects the page.
pub fn a_write_protect_while_logging() {
    against_a_held_leaf(|pe| {
        let (mut claim, _) = pe.claim(pages(PAGE, 1));
        let all = Batch::all_of(&claim);
        let done = pe.world.space().write_protect(&pe.cpu, &mut claim, all);
        assert_eq!(done, Ok(Progress::Done));
    });
}

/// EL2 writes, one PE harvests, and a third takes the bits and copies, with no order but that of the bits.
pub fn a_write_of_el2_is_copied_by_a_third() {
    let (log, world) = logged(Shape::small(2, 1), false);
    let writer = world.spawn(1, &[], write);
    let taker = {
        let log = Arc::clone(&log);
        world.thread(move |world| {
            reached(if log.take(world, plainly) { "taken meanwhile" } else { "nothing yet" });
        })
    };
    world.pe(0, &[], harvest);
    taker.join().unwrap();
    writer.join().unwrap();
    log.judge(&world);
    finish(&world);
}

/// Hardware records a guest's write, while another PE harvests.
pub fn a_harvest_against_hardware() {
    let (log, world) = logged(UPDATED, false);
    let guest = world.thread(|world| {
        let wrote = (0..3).any(|_| {
            as_guest(world, || {
                let walk = Walk::begin(world.oracle(), 2, page(PAGE).get(), Purpose::Write).ok();
                match walk.map(|walk| walk.finish(Choice::Faithful)) {
                    Some(Outcome::Done(_)) => {
                        let leaf = leaf(world);
                        if let Some(leaf) = leaf {
                            world.frame(leaf.pa()).store(WRITTEN, Ordering::Relaxed);
                        }
                        leaf.is_some()
                    }
                    _ => false,
                }
            })
        });
        reached(if wrote { "wrote" } else { "write faulted" });
    });
    world.pe(0, &[], |pe| {
        harvest(pe);
        log.take(&world, the_last);
    });
    guest.join().unwrap();
    log.judge(&world);
    finish(&world);
}

/// A page is taken away while another PE harvests and takes bits: it is reported, then or later.
pub fn an_unmap_while_logging() {
    let (log, world) = logged(Shape::small(2, 1), false);
    let asker = {
        let log = Arc::clone(&log);
        world.spawn(1, &[], move |pe| {
            harvest(pe);
            log.take(pe.world, plainly)
        })
    };
    world.pe(0, &[], |pe| {
        assert_eq!(pe.unmap_all(pages(PAGE, 1), Notes::Keep).len(), 1);
    });
    let told = asker.join().unwrap();
    reached(if told { "told at once" } else { "told by the next" });
    let later = log.take(&world, plainly);
    assert!(told || later, "what was taken away is not reported");
    finish(&world);
}

/// A fault handler populates page 1 and its guest writes there, while a session begins: whatever the handler saw of it.
pub fn an_install_while_a_session_begins() {
    let (log, world) = (Log::new(), World::new(Shape::small(2, 1)));
    let handler = world.spawn(1, &[0], |pe| {
        pe.install(page(PAGE), Level::L3).expect("there is a frame");
        if !store_if_writable(pe.world) {
            // It has been harvested since.
            let _ = pe.world.space().relax(&pe.cpu.enter(), page(PAGE), Prot::WRITE, Prot::RWX);
            reached(if store_if_writable(pe.world) { "let" } else { "faulted" });
        }
    });
    world.pe(0, &[], |pe| {
        log.start(pe);
        harvest(pe);
        let told = log.take(&world, the_last);
        reached(if told { "in time" } else { "later" });
    });
    handler.join().unwrap();
    log.judge(&world);
    finish(&world);
}

/// A frame that is not the guest's to write.
struct One<'p, 'w>(&'p Pe<'w>);

// SAFETY: (1, 2) a frame at this PE's hand, filled.
unsafe impl Frames for One<'_, '_> {
    fn take(&mut self) -> Option<Pa> {
        Some(self.0.take())
    }

    fn give_back(&mut self, frame: Pa) {
        self.0.world.give_memory(frame, PAGE_SIZE);
    }
}

/// A fault handler populates a page that cannot be written, and says so, while a session begins: it is told of, or met.
pub fn a_read_only_install_while_a_session_begins() {
    let (log, world) = (Log::new(), World::new(Shape::small(2, 1)));
    let handler = world.spawn(1, &[0], |pe| {
        let (space, guard) = (pe.world.space(), pe.cpu.enter());
        let attributes = Attributes::new(Prot::READ, MemType::Normal);
        let mapping = space.mapping(Level::L3, &attributes, Owner::Vm).expect("a page");
        let (mut frames, mut tally) = (One(pe), Tally::default());
        let done = space.install(&guard, page(PAGE), &mapping, &mut frames, &mut tally);
        assert!(!matches!(done, Err(InstallError::Occupied { .. })));
        done.expect("there is a frame");
        space.dirty_mark(&guard, pages(PAGE, 1));
    });
    let told = world.pe(0, &[], |pe| {
        log.start(pe);
        harvest(pe);
        log.take(&world, plainly)
    });
    handler.join().unwrap();
    reached(if told { "in time" } else { "later" });
    let later = log.take(&world, plainly);
    assert!(told || later, "a page that cannot be written is reported nowhere");
    finish(&world);
}

/// All leaves live, and what they have recorded is known.
fn finish(world: &World) {
    for number in 0..4 {
        let found = world.walk(page(number));
        if found.seen != Descriptor::EMPTY {
            assert!(found.seen.is_valid(), "all live again");
            world.oracle().note(|pe| Event::Harvested { pe, slot: found.address, count: 1 });
        }
    }
    world.settle();
}
