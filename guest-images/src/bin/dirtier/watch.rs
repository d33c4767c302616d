//! What a run must have seen, and the least of it.

use guest_rt::{Args, call, check, fail, say};
use hyp_abi::call::Stat;

use super::drive::Sum;

/// How many numbers there are.
pub(crate) const KINDS: usize = 4;

const NAMES: [(&str, &str); KINDS] = [
    ("min-dirtied", "pages reported and copied while they were written"),
    ("min-stopped", "pages left for when all stood still"),
    ("min-windows", "faults met what was being changed"),
    ("min-refaults", "writes met a clean page"),
];

/// The arguments for the least of each.
pub(crate) const fn key(number: usize) -> &'static str {
    NAMES[number].0
}

/// Counters as they were, and what they must rise by.
pub(crate) struct Watch {
    before: [u64; 2],
    least: [u64; KINDS],
}

impl Watch {
    /// Begins; `None` if there is no hypervisor that counts.
    pub(crate) fn new(args: Args) -> Option<Self> {
        let least = NAMES.map(|(key, _)| args.number(key, 0) as u64);
        Some(Self { before: counters()?, least })
    }

    fn numbers(&self, sum: Sum) -> [u64; KINDS] {
        let Some(now) = counters() else { fail!("the hypervisor has stopped to count") };
        let [windows, refaults] = [0, 1].map(|number| now[number] - self.before[number]);
        [sum.copied, sum.stopped, windows, refaults]
    }

    /// Whether every number is what it must be.
    pub(crate) fn is_enough(&self, sum: Sum) -> bool {
        self.numbers(sum).iter().zip(self.least).all(|(number, least)| *number >= least)
    }

    /// Says what there was; fails if it is not enough.
    pub(crate) fn judge(&self, sum: Sum) {
        for (((_, name), number), least) in NAMES.iter().zip(self.numbers(sum)).zip(self.least) {
            say!("dirtier: {name}: {number}");
            check!(number >= least, "{name}: {number}, at least {least} wanted");
        }
    }
}

/// Faults that met a slot on its way, and faults that found a clean page.
fn counters() -> Option<[u64; 2]> {
    let windows = call::stat(Stat::Retries)? + call::stat(Stat::Drained)?;
    Some([windows, call::stat(Stat::Relaxed)?])
}
