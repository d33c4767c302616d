//! What a run must have seen: the hypervisor's counters, and the least that each must have risen by.

use guest_rt::{Args, call, check, fail, say};
use hyp_abi::call::Stat;

/// A number that a run must raise.
struct Watched {
    /// Their sum.
    stats: &'static [Stat],
    name: &'static str,
    /// The argument for the minimum, and the minimum without it.
    key: &'static str,
    least: usize,
    /// Nothing is expected of it where RAM is populated by pages.
    blocks: bool,
}

const WATCHED: [Watched; KINDS] = [
    Watched {
        stats: &[Stat::Drained],
        name: "faults met in Drain",
        key: "min-drained",
        least: 100,
        blocks: false,
    },
    Watched {
        stats: &[Stat::TablesFreed],
        name: "tables given back",
        key: "min-freed",
        least: 16,
        blocks: false,
    },
    Watched {
        stats: &[Stat::LostRaces, Stat::LostTables],
        name: "races lost for a page or a table",
        key: "min-lost",
        least: 2,
        blocks: false,
    },
    Watched {
        stats: &[Stat::Split],
        name: "blocks split",
        key: "min-split",
        least: 32,
        blocks: true,
    },
    Watched {
        stats: &[Stat::Collapsed],
        name: "blocks made",
        key: "min-collapsed",
        least: 32,
        blocks: true,
    },
    Watched {
        stats: &[Stat::Copied],
        name: "blocks made of copies",
        key: "min-copied",
        least: 32,
        blocks: true,
    },
    Watched {
        stats: &[Stat::Filled],
        name: "holes filled",
        key: "min-filled",
        least: 100,
        blocks: true,
    },
    Watched { stats: &[Stat::Runs], name: "runs made", key: "min-runs", least: 64, blocks: true },
    Watched {
        stats: &[Stat::Dissolved],
        name: "runs dissolved",
        key: "min-dissolved",
        least: 64,
        blocks: true,
    },
    Watched {
        stats: &[Stat::Moved],
        name: "pages moved",
        key: "min-moved",
        least: 0,
        blocks: false,
    },
    Watched { stats: &[Stat::Aged], name: "pages aged", key: "min-aged", least: 0, blocks: true },
];
/// How many there are.
pub(crate) const KINDS: usize = 11;

/// The arguments of a run: these, and the minima.
pub(crate) const fn keys<const N: usize, const ALL: usize>(
    others: [&'static str; N],
) -> [&'static str; ALL] {
    let mut keys = [""; ALL];
    let mut number = 0;
    while number < ALL {
        keys[number] = if number < N { others[number] } else { WATCHED[number - N].key };
        number += 1;
    }
    keys
}

/// Counters as they were, and what they must rise by.
pub(crate) struct Watch {
    before: [u64; KINDS],
    least: [u64; KINDS],
}

impl Watch {
    /// Begins; `None` if there is no hypervisor that counts. `by_default` whether there are minima that no argument asks for.
    pub(crate) fn new(args: Args, blocks: bool, by_default: bool) -> Option<Self> {
        let least = WATCHED.map(|it| match it.blocks && !blocks {
            true => 0,
            false => args.number(it.key, if by_default { it.least } else { 0 }) as u64,
        });
        Some(Self { before: counters()?, least })
    }

    fn risen(&self) -> [u64; KINDS] {
        let Some(now) = counters() else { fail!("the hypervisor has stopped to count") };
        core::array::from_fn(|number| now[number] - self.before[number])
    }

    /// Whether anything must be.
    pub(crate) fn is_wanted(&self) -> bool {
        self.least.iter().any(|least| *least != 0)
    }

    /// Whether every number is what it must be.
    pub(crate) fn is_enough(&self) -> bool {
        self.risen().iter().zip(self.least).all(|(risen, least)| *risen >= least)
    }

    /// Says what there was; fails if it is not enough.
    pub(crate) fn judge(&self) {
        for ((it, risen), least) in WATCHED.iter().zip(self.risen()).zip(self.least) {
            say!("churn: {}: {risen}", it.name);
            check!(risen >= least, "{}: {risen}, at least {least} wanted", it.name);
        }
    }
}

fn counters() -> Option<[u64; KINDS]> {
    let mut sums = [0; KINDS];
    for (sum, it) in sums.iter_mut().zip(WATCHED) {
        *sum = it.stats.iter().map(|stat| call::stat(*stat)).sum::<Option<u64>>()?;
    }
    Some(sums)
}
