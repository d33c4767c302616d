//! What came out of the runs: a cell for each way to change a range of one size.

use std::collections::BTreeMap;

use hyp_abi::measure::{METHODS, Way, Work};
use hyp_core::report::ProtSample;
use serde::Serialize;

/// What a cell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Key {
    /// Name of the method.
    pub(super) method: &'static str,
    /// Name of the work.
    pub(super) work: &'static str,
    /// Pages of 4 KiB in the range.
    pub(super) pages: u64,
}

/// Of a run that was counted: the same in each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Counted {
    #[serde(flatten)]
    pub(super) key: Key,
    /// EL2 instructions.
    pub(super) instructions: u64,
    /// Those of the longest batch, from before its first change to after its flush.
    pub(super) window: u64,
    /// Descriptors that were written, each as often as it was.
    pub(super) writes: u64,
    /// TLB invalidations by instruction.
    pub(super) tlbi: BTreeMap<String, u64>,
    /// Data synchronisation barriers.
    pub(super) dsb: u64,
}

/// Of all rounds of a run at full speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Timed {
    #[serde(flatten)]
    pub(super) key: Key,
    /// Microseconds.
    pub(super) time: Spread,
    /// Time, divided by what the first method took in the same round.
    pub(super) ratio: Spread,
    /// Microseconds of the longest batch of a round.
    pub(super) window: Spread,
    /// Microseconds of the longest batch of all.
    pub(super) longest: f64,
    /// Stage-2 faults that met a leaf which was invalid until a flush was over, in all rounds.
    pub(super) met: u64,
    /// Stage-2 faults of any kind, in all rounds.
    pub(super) faults: u64,
    /// Rounds.
    pub(super) rounds: usize,
}

/// The middle of some numbers, and where its quarters begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Key {
    fn of(sample: &ProtSample) -> Option<Self> {
        let way = Way::from_word(sample.way)?;
        let method = METHODS.iter().find(|method| method.way(way.work) == way)?;
        Some(Self { method: method.name, work: name(way.work), pages: sample.pages })
    }
}

impl Counted {
    /// The samples of a run in which each cell was measured once.
    pub(super) fn all(samples: &[ProtSample]) -> Vec<Self> {
        let counted = |sample: &ProtSample| {
            let tlbi =
                ProtSample::TLBI.into_iter().zip(sample.tlbi).filter(|(_, count)| *count != 0);
            Some(Self {
                key: Key::of(sample)?,
                instructions: sample.ticks,
                window: sample.window,
                // What is broken is written twice.
                writes: sample.changed + sample.broken,
                tlbi: tlbi.map(|(kind, count)| (kind.to_owned(), count)).collect(),
                dsb: sample.dsb,
            })
        };
        samples.iter().filter_map(counted).collect()
    }

    /// Instructions a page of 4 KiB.
    pub(super) fn each(&self) -> f64 {
        self.instructions as f64 / self.key.pages as f64
    }

    /// TLB invalidations of all kinds.
    pub(super) fn tlbis(&self) -> u64 {
        self.tlbi.values().sum()
    }
}

impl Timed {
    /// The samples of a run of many rounds, in the order in which they were taken.
    pub(super) fn all(samples: &[ProtSample]) -> Vec<Self> {
        let mut keys = Vec::<Key>::new();
        for key in samples.iter().filter_map(Key::of) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let times = |key: Key| -> Vec<f64> {
            let its = samples.iter().filter(|sample| Key::of(sample) == Some(key));
            its.map(|sample| sample.ticks as f64).collect()
        };
        let timed = |key: Key| {
            let its = || samples.iter().filter(|sample| Key::of(sample) == Some(key));
            let first = times(Key { method: METHODS[0].name, ..key });
            let own = times(key);
            let ratios = own.iter().zip(&first).map(|(own, first)| own / first.max(1.0));
            let windows: Vec<_> = its().map(|sample| sample.window as f64 / 1000.0).collect();
            Some(Self {
                key,
                time: Spread::of(own.iter().map(|time| time / 1000.0).collect())?,
                ratio: Spread::of(ratios.collect())?,
                longest: windows.iter().copied().fold(0.0, f64::max),
                window: Spread::of(windows)?,
                met: its().map(|sample| sample.met).sum(),
                faults: its().map(|sample| sample.faults).sum(),
                rounds: own.len(),
            })
        };
        keys.into_iter().filter_map(timed).collect()
    }
}

impl Spread {
    /// Of these numbers; `None` if there are none.
    fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let at = |part: usize| numbers.get(numbers.len() * part / 4).copied();
        let below = numbers.get(numbers.len().checked_sub(1)? / 2)?;
        Some(Self { low: at(1)?, median: (below + at(2)?) / 2.0, high: at(3)? })
    }
}

/// What work is called.
pub(super) const fn name(work: Work) -> &'static str {
    match work {
        Work::WriteProtect => "write-protect",
        Work::Unprotect => "un-protect",
        Work::FirstHarvest => "first harvest",
        Work::Harvest => "harvest",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(method: usize, ticks: u64) -> ProtSample {
        let way = METHODS[method].way(Work::Harvest).to_word();
        ProtSample { way, pages: 8, ticks, window: ticks / 2, met: 1, ..ProtSample::default() }
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        // The machine is ten times slower in the second round: no ratio says so.
        let samples =
            [sample(0, 1000), sample(1, 500), sample(0, 10_000), sample(1, 5000), sample(0, 800)];
        let timed = Timed::all(&samples);
        assert_eq!(timed.len(), 2);
        assert_eq!((timed[0].ratio.low, timed[0].ratio.high, timed[0].rounds), (1.0, 1.0, 3));
        assert_eq!((timed[1].ratio.low, timed[1].ratio.median, timed[1].rounds), (0.5, 0.5, 2));
        assert_eq!((timed[1].longest, timed[1].met), (2.5, 2));
        assert_eq!(timed[0].time.median, 1.0);
    }

    #[test]
    fn quartiles_are_taken_from_what_was_measured() {
        let spread = Spread::of(vec![9.0, 1.0, 5.0, 3.0, 7.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (3.0, 5.0, 7.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_sample_of_no_method_is_no_cell() {
        assert!(Counted::all(&[ProtSample { way: u64::MAX, ..ProtSample::default() }]).is_empty());
        let counted = Counted::all(&[ProtSample { changed: 8, broken: 8, ..sample(0, 80) }]);
        assert_eq!((counted[0].writes, counted[0].each()), (16, 10.0));
    }
}
