//! Memory is moved under vCPUs that work with it, and the size of its mappings changes.
//!
//! One vCPU asks the hypervisor, again and again, to move a piece of RAM to other frames with its
//! content kept. The others go on reading and writing that RAM, and verify every word. What was
//! left behind is poisoned, so a stale translation shows:
//!
//! | what is moved | what a missing invalidation would show |
//! | --- | --- |
//! | data pages of one vCPU each | an old page, poisoned; a write lost |
//! | the stage-1 tables of their aliases | a walk through a poisoned table: the stage-2 entries of stage 1's own walks |
//! | pages that all read | two frames for one page |
//! | code | poison fetched as instructions |
//! | the guest's own image: the code that all run, their stacks, the root of stage 1 | any of these |
//!
//! If the hypervisor populates RAM by blocks, the sizes change at random, too: what was moved is copied into a
//! block again, in which the next move takes pages away. Of the image's block little is populated at first: copying
//! fills the rest. Each worker has a second block then, whose pages are never moved apart: it can be collapsed. There a
//! stale translation is right, and what shows is a page that is lost or locked meanwhile, and a TLB that has two
//! sizes of one address.
//!
//! It goes on until everything has happened more often than its minimum (`watch`), or until the time is over,
//! which fails.
//!
//! Arguments (`key=value`): `pages` of data a vCPU (64), `moves` at the least (200), `seconds` at the most
//! (60), and the minimum of each: `min-drained` (100), `min-freed` (16), `min-lost` (2),
//! `min-moved` (0) pages, with blocks `min-split`, `min-collapsed`, `min-copied` (32 each), `min-filled` (100), `min-runs` and `min-dissolved`
//! (64) and `min-aged` (0) pages; `min-busy` (0) moves that the hypervisor refused because it was at something else. vCPUs that take
//! turns (`--icount`) lose no race: `min-lost=0`. With `reset=1` a pass is no verdict: the guest resets its
//! machine instead, while its vCPUs work. With `by=manager` the guest asks for nothing: all vCPUs work for so many `seconds`, under what the
//! hypervisor does in the background (`--churn`), which its report tells. There is no minimum then that is not asked for; with
//! one the guest works until all are reached, and `seconds` at the most.

#![no_std]
#![no_main]

mod calls;
mod watch;
mod work;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
use calls::{Resize, move_memory, refusals, resize, resize_all};
use guest_rt::machine::image_end;
use guest_rt::rng::mix;
use guest_rt::{MIB2, Machine, PAGE, check, check_eq, cpu, fail, say, smp};
use hyp_abi::call::{COLLAPSE, CONTIGUOUS, COPY, DISSOLVE, SPLIT};
use smccc::{Hvc, psci};
use watch::{KINDS, Watch};
use work::{Block, MAX_PAGES};

guest_rt::guest!("churn", churn);

const KEYS: [&str; 6 + KINDS] =
    watch::keys(["pages", "moves", "seconds", "reset", "by", "min-busy"]);
/// How the size of what stays together changes, and of what is moved: as often as they stand here.
const TOGETHER: &[u32] =
    &[SPLIT, SPLIT, SPLIT, COLLAPSE, COLLAPSE, COLLAPSE, COPY, CONTIGUOUS, DISSOLVE];
const SCATTERED: &[u32] = &[SPLIT, SPLIT, COLLAPSE, COPY, COPY, COPY, CONTIGUOUS, DISSOLVE];
/// Seconds / this: how long vCPUs work before their machine is reset.
const RESET_AFTER: u64 = 50;

/// What the mover works on.
struct Targets {
    /// The block that the image begins in.
    image: usize,
    /// Blocks that are moved, one behind the other.
    moved: usize,
    /// Blocks whose pages stay together, likewise; as many, if there are any.
    whole: Option<usize>,
    /// How many.
    count: usize,
    /// Pages of a block that hold data.
    pages: usize,
}

impl Targets {
    /// Moves something; `None` if the hypervisor was busy.
    fn move_some(&self, dice: u64) -> Option<u64> {
        let number = dice as usize % (self.count + 1);
        let block = if number == self.count { self.image } else { self.moved + number * MIB2 };
        // A whole block, whose table goes too; or some pages of it.
        let (first, count) = match dice >> 32 & 3 {
            0 => (0, MIB2 / PAGE),
            _ => ((dice >> 8) as usize % self.pages, 1 + (dice >> 40) as usize % 16),
        };
        move_memory(block + first * PAGE, count * PAGE)
    }

    /// Changes the size of something: of a block that stays together, of all of those, of one that is moved, or of the
    /// image.
    fn resize_some(&self, dice: u64) {
        let Some(whole) = self.whole else { return };
        let one = (dice >> 16) as usize % self.count * MIB2;
        let (start, count, ways) = match dice >> 58 & 7 {
            0 => (whole, self.count, TOGETHER),
            1 => (self.image, 1, SCATTERED),
            2..=4 => (self.moved + one, 1, SCATTERED),
            _ => (whole + one, 1, TOGETHER),
        };
        resize_all(ways[(dice >> 50) as usize % ways.len()], start, count * MIB2);
    }
}

/// Copies the image's block, whose holes are to be filled with zeros, into memory that is full of poison: the copy of
/// another block has just left it behind.
fn fill_holes(image: usize, other: usize) {
    // SAFETY: 1. RAM of the arena, inside the identity map; 2. nobody else uses it.
    unsafe { (other as *mut u64).write_volatile(1) };
    // The first copy is one only if there was no block before.
    for (call, start) in [(COPY, other), (SPLIT, other), (COPY, other), (COPY, image)] {
        resize_all(call, start, MIB2);
    }
    check_untouched(image);
}

/// Verifies that the rest of the image's block is zero: nobody writes it.
fn check_untouched(image: usize) {
    for word in (image_end()..image + MIB2).step_by(size_of::<u64>()) {
        // SAFETY: 1. RAM inside the identity map; 2. any bits are a u64.
        let found = unsafe { (word as *const u64).read_volatile() };
        check_eq!(found, 0, "the word at {word:#x}, which nobody wrote");
    }
}

fn churn(machine: &Machine) {
    let args = machine.args(&KEYS);
    let vcpus = machine.vcpus().len();
    let by_manager = match args.get("by").unwrap_or("call") {
        "call" => false,
        "manager" => true,
        other => fail!("by={other}: call or manager"),
    };
    check!(by_manager || vcpus >= 2, "churn needs two vCPUs at the least, has {vcpus}");
    let pages = args.number("pages", 64);
    check!((1..=MAX_PAGES).contains(&pages), "pages={pages}: 1 to {MAX_PAGES} are possible");
    let moves = args.number("moves", 200);
    let limit = args.number("seconds", 60) as u64 * CNTFRQ_EL0.get();
    let resizes = resize(SPLIT, machine.ram.start, 0) != Resize::Unsupported;
    let Some(watch) = Watch::new(args, resizes, !by_manager) else {
        say!("churn: no hypervisor, so nobody can move memory");
        return;
    };
    if !by_manager {
        refusals(machine, resizes);
    }

    let mut arena = machine.arena();
    // One block for each worker, and one that all of them read.
    // As many again stay together, if there are blocks to resize.
    let count = if resizes { 2 * vcpus } else { vcpus };
    let blocks = arena.take(count * MIB2, MIB2);
    let block = |number: usize| Block::new(blocks + number * MIB2, number, pages);
    (0..count).for_each(|number| block(number).prepare());
    let mine = |number: usize| [block(number), block(count - vcpus + number)];
    check!(resizes || !by_manager, "by=manager needs RAM that may have blocks: --churn");
    let whole = resizes.then_some(blocks + vcpus * MIB2);
    let image = machine.ram.start + MIB2;
    if whole.is_some() && !by_manager {
        fill_holes(image, arena.take(MIB2, MIB2));
    }
    let targets = Targets { image, moved: blocks, whole, count: vcpus, pages };

    let least_busy = args.number("min-busy", 0) as u64;
    let begun = cpu::ticks();
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    smp::run(machine, vcpus, &|me| {
        if by_manager || me.index != 0 {
            // One of them looks whether the hypervisor has done enough.
            let looks = me.index == 0 && watch.is_wanted();
            let over = || {
                if looks && watch.is_enough() {
                    stop.store(true, Ordering::Release);
                }
                stop.load(Ordering::Acquire) || by_manager && cpu::ticks() - begun >= limit
            };
            // All read the first block: who would write it has another.
            let [first, second] = mine(me.index);
            let mine = if me.index == 0 { [second; 2] } else { [first, second] };
            let done = work::work(&mine, &block(0), over);
            rounds.fetch_add(done, Ordering::Relaxed);
            return;
        }
        let start = cpu::ticks();
        let (mut moved, mut calls, mut busy) = (0, 0, 0u64);
        let is_enough = |busy| busy >= least_busy && watch.is_enough();
        while !(calls >= moves && is_enough(busy)) && cpu::ticks() - start < limit {
            match targets.move_some(mix(calls as u64 * 2)) {
                Some(pages) => moved += pages,
                None => busy += 1,
            }
            targets.resize_some(mix(calls as u64 * 2 + 1));
            calls += 1;
        }
        stop.store(true, Ordering::Release);
        say!("churn: {calls} moves of {moved} pages in all, {busy} times busy");
        check!(busy >= least_busy, "{busy} times busy, at least {least_busy} wanted");
    });
    (0..count).for_each(|number| block(number).verify());
    check_untouched(image);
    let rounds = rounds.load(Ordering::Relaxed);
    check!(rounds != 0, "the workers did nothing");
    say!("churn: {rounds} pages verified and rewritten meanwhile");
    if watch.is_wanted() {
        watch.judge();
    }
    if args.number("reset", 0) != 0 {
        stop.store(false, Ordering::Relaxed);
        smp::run(machine, vcpus, &|me| {
            if me.index != 0 {
                work::work(&mine(me.index), &block(0), || stop.load(Ordering::Acquire));
                return;
            }
            let start = cpu::ticks();
            while cpu::ticks() - start < CNTFRQ_EL0.get() / RESET_AFTER {}
            let refused = psci::system_reset::<Hvc>();
            fail!("PSCI SYSTEM_RESET returned: {refused:?}");
        });
    }
}
