//! Medians, ratios and their spread; the table and the JSON.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Limit, Work};

/// Times of a contender that spread more than this, as quartile over quartile, are hints only.
const STEADY: f64 = 1.2;

/// All times, by work, contender and round.
pub(crate) struct Report<'w> {
    works: Vec<Measured<'w>>,
    pages: usize,
    rounds: u32,
    /// Whether limits are judged.
    judged: bool,
}

/// What came of a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The median is below it.
    Holds,
    /// The median is above it.
    Exceeded,
    /// It is for another amount of memory.
    NotJudged,
}

/// The times of one work.
struct Measured<'w> {
    work: &'w Work,
    /// Nanoseconds a page: for each contender, of each round.
    nanos: Vec<Vec<f64>>,
}

/// The middle of a sample and its quartiles.
#[derive(Clone, Copy)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn of(mut sample: Vec<f64>) -> Self {
        sample.sort_by(f64::total_cmp);
        let at = |quarter: usize| sample[(sample.len() - 1) * quarter / 4];
        Self { low: at(1), median: at(2), high: at(3) }
    }

    fn json(self) -> Value {
        json!({ "q1": self.low, "median": self.median, "q3": self.high })
    }

    fn quartiles(self) -> String {
        format!("{:.2}-{:.2}", self.low, self.high)
    }
}

impl<'w> Report<'w> {
    pub(crate) fn new(works: &'w [Work], pages: usize, rounds: u32, judged: bool) -> Self {
        let measured =
            |work: &'w Work| Measured { work, nanos: vec![Vec::new(); work.contenders.len()] };
        Self { works: works.iter().map(measured).collect(), pages, rounds, judged }
    }

    /// The times of one round of a work, by contender.
    pub(crate) fn add(&mut self, work: usize, times: &[Duration]) {
        for (nanos, time) in self.works[work].nanos.iter_mut().zip(times) {
            nanos.push(time.as_secs_f64() * 1e9 / self.pages as f64);
        }
    }

    pub(crate) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.works.iter().flat_map(move |work| {
            work.work.limits.iter().map(move |limit| self.verdict(work, limit))
        })
    }

    fn verdict(&self, work: &Measured<'_>, limit: &Limit) -> Verdict {
        if !self.judged {
            Verdict::NotJudged
        } else if work.ratio(limit.who, limit.of).median <= limit.at_most {
            Verdict::Holds
        } else {
            Verdict::Exceeded
        }
    }

    /// The table.
    pub(crate) fn print(&self) {
        let (pages, rounds) = (self.pages, self.rounds);
        println!("{pages} pages of 4 KiB, {rounds} rounds; medians with quartiles");
        println!("{:<32}{:>7}{:>26}", "", "ns/page", "x the first");
        for work in &self.works {
            work.print();
            for limit in &work.work.limits {
                println!("  {}", self.sentence(work, limit));
            }
            if work.is_unsteady() {
                println!(
                    "  the times of a round differ from those of another: hints only, the machine is busy"
                );
            }
        }
    }

    fn sentence(&self, work: &Measured<'_>, limit: &Limit) -> String {
        let (ratio, most) = (work.ratio(limit.who, limit.of), limit.at_most);
        let (who, of) = (work.name(limit.who), work.name(limit.of));
        let verdict = match self.verdict(work, limit) {
            Verdict::Holds => "holds",
            Verdict::Exceeded => "EXCEEDED",
            Verdict::NotJudged => "not judged",
        };
        let doubt = if self.judged && ratio.low < most && most < ratio.high {
            format!(", but it lies within {}: too much spread to judge", ratio.quartiles())
        } else {
            String::new()
        };
        format!("limit: {who} <= {most:.2} x {of}: {:.2}, {verdict}{doubt}", ratio.median)
    }

    /// All figures.
    pub(crate) fn json(&self) -> String {
        let works: Vec<Value> = self.works.iter().map(|work| self.work_json(work)).collect();
        let report = json!({
            "pages": self.pages, "page_bytes": 4096, "rounds": self.rounds, "works": works,
        });
        format!("{report:#}\n")
    }

    fn work_json(&self, work: &Measured<'_>) -> Value {
        let contenders = work.nanos.iter().enumerate().map(|(who, nanos)| {
            json!({
                "name": work.name(who),
                "ns_per_page": Spread::of(nanos.clone()).json(),
                "ratio_to_first": work.ratio(who, 0).json(),
                "rounds_ns_per_page": nanos,
            })
        });
        let limits = work.work.limits.iter().map(|limit| {
            json!({
                "who": work.name(limit.who),
                "of": work.name(limit.of),
                "at_most": limit.at_most,
                "ratio": work.ratio(limit.who, limit.of).json(),
                "holds": match self.verdict(work, limit) {
                    Verdict::Holds => Some(true),
                    Verdict::Exceeded => Some(false),
                    Verdict::NotJudged => None,
                },
            })
        });
        json!({
            "work": work.work.name,
            "steady": !work.is_unsteady(),
            "contenders": contenders.collect::<Vec<_>>(),
            "limits": limits.collect::<Vec<_>>(),
        })
    }
}

impl Measured<'_> {
    fn name(&self, who: usize) -> &'static str {
        self.work.contenders[who].name
    }

    /// One contender's time as a multiple of another's, round by round.
    fn ratio(&self, who: usize, of: usize) -> Spread {
        Spread::of(self.nanos[who].iter().zip(&self.nanos[of]).map(|(who, of)| who / of).collect())
    }

    /// Whether anybody's times spread so much that they say little.
    fn is_unsteady(&self) -> bool {
        self.nanos.iter().any(|nanos| {
            let Spread { low, high, .. } = Spread::of(nanos.clone());
            high > low * STEADY
        })
    }

    fn print(&self) {
        println!("\n{}", self.work.name);
        for (who, nanos) in self.nanos.iter().enumerate() {
            let (time, ratio) = (Spread::of(nanos.clone()), self.ratio(who, 0));
            println!(
                "  {:<30}{:>7.2} {:>15}   {:>6.2} {:>15}",
                self.name(who),
                time.median,
                time.quartiles(),
                ratio.median,
                ratio.quartiles(),
            );
        }
    }
}

/// On a terminal, one line that is written again; elsewhere nothing.
pub(crate) fn progress(round: u32, rounds: u32) {
    if stderr().is_terminal() {
        let end = if round == rounds { "\r\x1b[K" } else { "" };
        eprint!("\rround {round} of {rounds}{end}");
        let _ = stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Contender;

    /// Two contenders, the second of which may take 1.3 times as long.
    fn work() -> Work {
        let contender = |name| Contender { name, run: |_| Duration::ZERO };
        let limits = vec![Limit { who: 1, of: 0, at_most: 1.3 }];
        Work { name: "work", contenders: vec![contender("bare"), contender("ours")], limits }
    }

    fn judge(ours: [u64; 5], judged: bool) -> (Verdict, String, Value) {
        let works = [work()];
        let mut report = Report::new(&works, 1, 5, judged);
        ours.into_iter().for_each(|ours| {
            report.add(0, &[Duration::from_nanos(100), Duration::from_nanos(ours)]);
        });
        let verdict = report.verdicts().next().unwrap();
        let sentence = report.sentence(&report.works[0], &works[0].limits[0]);
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        (verdict, sentence, json["works"][0].clone())
    }

    #[test]
    fn the_median_of_the_rounds_ratios_is_what_a_limit_is_held_against() {
        let (verdict, sentence, json) = judge([129, 999, 120, 129, 1], true);
        assert!(verdict == Verdict::Holds && !sentence.contains("judge"), "{sentence}");
        assert_eq!(json["limits"][0]["holds"], true);
        assert_eq!(json["limits"][0]["ratio"]["median"], 1.29);
        let (verdict, sentence, json) = judge([131, 999, 131, 140, 1], true);
        assert!(verdict == Verdict::Exceeded && sentence.contains("EXCEEDED"), "{sentence}");
        assert_eq!(json["limits"][0]["holds"], false);
    }

    #[test]
    fn a_limit_between_the_quartiles_is_not_judged_in_silence() {
        let (_, sentence, json) = judge([110, 115, 129, 150, 160], true);
        assert!(sentence.contains("lies within 1.15-1.50: too much spread to judge"), "{sentence}");
        assert_eq!(json["steady"], false);
        assert_eq!(judge([129; 5], true).2["steady"], true);
    }

    #[test]
    fn another_amount_of_memory_is_not_judged() {
        let (verdict, sentence, json) = judge([999; 5], false);
        assert!(verdict == Verdict::NotJudged && sentence.ends_with("not judged"), "{sentence}");
        assert!(json["limits"][0]["holds"].is_null());
    }
}
