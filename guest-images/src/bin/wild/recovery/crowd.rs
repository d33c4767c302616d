//! Several vCPUs, and one page of the window.

use guest_rt::access::{load, store};
use guest_rt::smp::{self, Rendezvous};
use guest_rt::{Args, Machine, PAGE, check, check_eq, mmu};
use hyp_abi::call::Stat;

use super::{Counts, Hole, PATTERN, stat};

/// Pages that all vCPUs meet at, all within one table.
const PAGES: usize = 64;

/// All at the same page at the same moment: each page is installed once, and everybody goes on from one scratch page.
pub(crate) fn crowd(machine: &Machine, _: Args) {
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let first = Hole::of(machine).take(PAGES);
    let (before, tables) = (Counts::now(), stat(Stat::Tables));
    let point = Rendezvous::new();
    smp::run(machine, count, &|me| {
        for number in 0..PAGES {
            let at = first + number * PAGE + 8 * me.index;
            point.meet(me, number);
            // QEMU lets all vCPUs go together from here.
            mmu::invalidate();
            if me.index.is_multiple_of(2) {
                check_eq!(load(at), Ok(PATTERN), "page {number} on vCPU {}", me.index);
            } else {
                check_eq!(store(at, PATTERN), Ok(()), "page {number} on vCPU {}", me.index);
            }
        }
    });
    let counts = before.since();
    check_eq!(counts.scratched, PAGES as u64, "scratch pages");
    let recovered = PAGES as u64..=(PAGES * count) as u64;
    check!(recovered.contains(&counts.recovered), "recovered: {}", counts.recovered);
    check_eq!(stat(Stat::Tables) - tables, 1, "tables");
}
