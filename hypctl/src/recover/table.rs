//! The table on the terminal: a line a scenario, a column a CPU model; and the JSON, an entry a run.

use std::fmt::Write;
use std::io;
use std::path::Path;

use hyp_core::range::Count;
use serde::Serialize;

use super::judge::Judged;
use crate::columns::aligned;
use crate::qemu::Qemu;

/// Stands before a number that is not what was expected.
const WRONG: &str = "!";

#[derive(Serialize)]
struct Table<'a> {
    schema: u32,
    what: &'a str,
    qemu: String,
    as_expected: bool,
    runs: &'a [Judged],
}

/// Writes the JSON, whole or not at all.
pub(super) fn write(path: &Path, qemu: &Qemu, runs: &[Judged]) -> io::Result<()> {
    let table = Table {
        schema: 1,
        what: "the recovery suite: violations expected and seen, outcomes",
        qemu: qemu.version().to_string(),
        as_expected: runs.iter().all(Judged::is_as_expected),
        runs,
    };
    let mut text = serde_json::to_vec_pretty(&table)?;
    text.push(b'\n');
    crate::atomic::write(path, &text)
}

/// The table, and below it what is wrong. Runs of one scenario stand side by side.
pub(super) fn text(cpus: &[&str], runs: &[Judged]) -> String {
    let mut rows = vec![vec!["scenario".to_owned(), "policy".to_owned(), "violations".to_owned()]];
    rows[0].extend(cpus.iter().map(|cpu| (*cpu).to_owned()));
    rows[0].push("outcome".to_owned());
    for runs in runs.chunk_by(|one, other| one.scenario == other.scenario) {
        let cell = |cpu: &&str| match runs.iter().find(|run| run.cpu == **cpu) {
            None => "-".to_owned(),
            Some(run) => {
                let seen = run.seen.map_or("no report".to_owned(), |seen| seen.to_string());
                if run.is_as_expected() { seen } else { format!("{WRONG}{seen}") }
            }
        };
        let mut row = vec![runs[0].scenario.to_owned(), runs[0].policy.to_owned(), expected(runs)];
        row.extend(cpus.iter().map(cell));
        row.push(outcome(runs));
        rows.push(row);
    }
    let numbers = 3..rows[0].len() - 1;
    let mut text = aligned(&rows, numbers);
    for run in runs.iter().filter(|run| !run.is_as_expected()) {
        let _ = writeln!(text, "\n{} on {} is not as expected:", run.scenario, run.cpu);
        run.wrong.iter().flat_map(|why| why.lines()).for_each(|line| {
            let _ = writeln!(text, "    {line}");
        });
        let _ = writeln!(text, "  {}", run.command);
    }
    let wrong = runs.iter().filter(|run| !run.is_as_expected()).count();
    let _ =
        writeln!(text, "\n{}, {wrong} of them not as expected", Count(runs.len() as u64, "run"));
    text
}

/// What was expected: what most models have in common, and where another number holds.
fn expected(runs: &[Judged]) -> String {
    let first = runs[0].expected;
    let mut text = first.to_string();
    for run in runs.iter().filter(|run| run.expected != first) {
        let _ = write!(text, ", {} on {}", run.expected, run.cpu);
    }
    text
}

/// How they ended: once, if all did alike.
fn outcome(runs: &[Judged]) -> String {
    let mut outcomes: Vec<_> = runs.iter().map(|run| run.outcome.as_str()).collect();
    outcomes.dedup();
    outcomes.join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::scenarios::SCENARIOS;
    use super::*;
    use crate::summary::Summary;

    fn judged(scenario: usize, cpu: &str) -> Judged {
        let summary = Summary { ended: "timeout", ..Summary::default() };
        let mut judged = Judged::of(&SCENARIOS[scenario], cpu, summary, String::new());
        (judged.seen, judged.outcome) = (Some(1), "stopped".to_owned());
        judged.wrong.clear();
        judged
    }

    #[test]
    fn a_row_has_all_models_and_what_is_wrong_stands_below() {
        let mut bad = judged(1, "max");
        bad.wrong.push("violations: 1, not 7".to_owned());
        let runs = [judged(0, "max"), judged(0, "cortex-a53"), bad];
        let text = text(&["max", "cortex-a53"], &runs);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("scenario") && lines[0].ends_with("outcome"), "{text}");
        let cells: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(cells, ["stop-read", "stop", "1", "1", "1", "stopped"], "{text}");
        let cells: Vec<_> = lines[2].split_whitespace().collect();
        assert_eq!(cells, ["stop-write", "stop", "1", "!1", "-", "stopped"], "{text}");
        assert!(text.contains("stop-write on max is not as expected:\n    violations: 1, not 7"));
        assert!(text.ends_with("3 runs, 1 of them not as expected\n"), "{text}");
        // Columns begin where their titles do.
        let at = lines[0].find("policy").unwrap();
        assert!(lines[1][at..].starts_with("stop"), "{text}");
    }
}
