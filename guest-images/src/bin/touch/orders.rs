//! Pages of one's own, and the same pages by all vCPUs in four orders.

use guest_rt::PAGE;
use guest_rt::rng::Permutation;
use guest_rt::smp::{self, Barrier, Vcpu};

use crate::pages::{Pages, Spread};
use crate::{Counters, Run};

/// The page that a vCPU touches as its `step`th of `pages`.
type Order = fn(step: usize, pages: usize, me: Vcpu) -> usize;

const ORDERS: [(&str, Order); 4] = [
    ("ascending", |step, _, _| step),
    ("descending", |step, pages, _| pages - 1 - step),
    ("random", |step, pages, me| Permutation::new(pages, me.index as u64).at(step)),
    ("interleaved", |step, pages, me| (step + me.index * pages / me.count) % pages),
];

/// One round over `count` pages a phase; gives what the run has moved at its end.
pub(crate) fn round(
    run: &mut Run<'_>,
    round: usize,
    count: usize,
    mut moved: Option<Counters>,
) -> Option<Counters> {
    let (machine, vcpus) = (run.machine, run.vcpus);
    let mut take = |name, count: usize| {
        run.touched += count;
        Pages::new(name, run.arena.take(count * PAGE, PAGE), round as u64)
    };
    let private = take("private", vcpus * count);
    let shared = ORDERS.map(|(name, _)| take(name, count));
    let start = Barrier::new();

    smp::run(machine, vcpus, &|me| {
        for page in 0..count {
            private.visit(page * me.count + me.index, me.index);
        }
    });
    moved = run.report("private", moved);
    for ((name, order), pages) in ORDERS.iter().zip(&shared) {
        smp::run(machine, vcpus, &|me| {
            start.wait(me);
            for step in 0..count {
                pages.visit(order(step, count, me), me.index);
            }
        });
        moved = run.report(name, moved);
    }
    smp::run(machine, vcpus, &|_| {
        for page in 0..vcpus * count {
            private.verify(page, Spread::Only(page % vcpus));
        }
        for (pages, page) in shared.iter().flat_map(|pages| (0..count).map(move |n| (pages, n))) {
            pages.verify(page, Spread::First(vcpus));
        }
    });
    moved
}
