//! Many violations.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use guest_rt::access::{load, store};
use guest_rt::ranges::all;
use guest_rt::rng::mix;
use guest_rt::{Args, Machine, PAGE, check, check_eq, fail, fpsimd, say, smp};
use hyp_abi::call::{RELEASE, Stat};

use super::{BYTES, Counts, Hole, PATTERN, stat};

/// Pages of the window.
const PAGES: usize = BYTES / PAGE;
/// Violations of the storm.
const STORM: usize = 100_000;
/// Bytes that each of the other vCPUs works with.
const WORK: usize = 64 << 10;

/// 100 000 violations by one vCPU, while the others work. Nothing of theirs is disturbed, and no memory is used up.
pub(crate) fn storm(machine: &Machine, _: Args) {
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let window = Hole::of(machine).take(PAGES);
    let mut arena = machine.arena();
    let desks = arena.take(count * WORK, PAGE);
    let done = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    let before = Counts::now();
    let tables = || stat(Stat::Tables) - stat(Stat::TablesFreed);
    smp::run(machine, count, &|me| {
        if me.index != 0 {
            let mut round = 0;
            loop {
                // Once more after the storm: whatever it may have broken shows.
                let last = done.load(Ordering::Acquire);
                work(desks + me.index * WORK, me.index as u64 | round << 8);
                round += 1;
                rounds.fetch_add(1, Ordering::Relaxed);
                if last {
                    return;
                }
            }
        }
        // All of them work before the storm begins.
        while rounds.load(Ordering::Relaxed) < count - 1 {
            smp::relax();
        }
        let (mut left, mut most) = (STORM, 0);
        while left > 0 {
            let now = left.min(PAGES);
            for page in 0..now {
                check_eq!(load(window + page * PAGE), Ok(PATTERN), "page {page} of the storm");
            }
            most = most.max(tables());
            check_eq!(all(RELEASE, window, BYTES, 0), 0, "pages of the VM's");
            left -= now;
        }
        // The window has a table for each 2 MiB.
        let spare = tables();
        check!(most <= spare + PAGES as u64 / 512, "{most} tables, {spare} after it");
        done.store(true, Ordering::Release);
    });
    let counts = before.since();
    let wanted = STORM as u64;
    check_eq!((counts.recovered, counts.scratched), (wanted, wanted), "recovered, scratched");
    say!("wild: {STORM} violations; the others have worked {} times", rounds.into_inner());
}

/// Memory and registers that nobody else uses keep what they are given.
fn work(desk: usize, seed: u64) {
    let words = (0..WORK / 8).map(|word| (desk + word * 8, mix(seed << 16 | word as u64)));
    fpsimd::check_kept("the storm", seed, || {
        words.clone().for_each(|(at, value)| {
            if let Err(fault) = store(at, value) {
                fail!("a store to RAM: {fault}");
            }
        });
    });
    words.for_each(|(at, value)| check_eq!(load(at), Ok(value), "the word at {at:#x}"));
}

/// Without end: the hypervisor has to put one to it.
pub(crate) fn endless(machine: &Machine, _: Args) {
    let window = Hole::of(machine).take(PAGES);
    loop {
        for page in 0..PAGES {
            check_eq!(load(window + page * PAGE), Ok(PATTERN), "page {page}");
        }
        all(RELEASE, window, BYTES, 0);
    }
}

/// The same load again and again.
pub(crate) fn again(machine: &Machine, _: Args) {
    let at = Hole::of(machine).take(1) + 0x30;
    for number in 0..1000 {
        check!(load(at).is_err(), "load {number} from the window was no abort");
    }
}
