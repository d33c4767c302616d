//! What a person and what a program reads of the trials.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::registry::Registry;
use crate::run::{Hunt, Outcome, Trial};

#[derive(Serialize)]
struct Row<'t> {
    mutant: &'t str,
    file: String,
    function: &'t str,
    rule: &'t str,
    outcome: &'t Outcome,
    killed_by: String,
    said: &'t str,
    seconds: f64,
}

#[derive(Serialize)]
struct Report<'t> {
    killed: usize,
    survived: usize,
    equivalent: usize,
    seconds: f64,
    mutants: Vec<Row<'t>>,
}

fn file(trial: &Trial<'_>) -> String {
    trial.mutant.seed.file.display().to_string()
}

fn killed(trials: &[Trial<'_>]) -> usize {
    trials.iter().filter(|trial| trial.outcome == Outcome::Killed).count()
}

/// The table as JSON.
///
/// # Errors
/// As of `serde_json`.
pub fn json(
    registry: &Registry,
    trials: &[Trial<'_>],
    time: Duration,
) -> Result<String, serde_json::Error> {
    let rows = trials.iter().map(|trial| Row {
        mutant: &trial.mutant.seed.name,
        file: file(trial),
        function: &trial.mutant.seed.function,
        rule: &trial.mutant.seed.rule,
        outcome: &trial.outcome,
        killed_by: trial.killer.to_string(),
        said: &trial.said,
        seconds: trial.time.as_secs_f64(),
    });
    let killed = killed(trials);
    serde_json::to_string_pretty(&Report {
        killed,
        survived: trials.len() - killed,
        equivalent: registry.equivalent().len(),
        seconds: time.as_secs_f64(),
        mutants: rows.collect(),
    })
}

/// The table as text: mutant, file, rule, killed by, time; survivors with what their test said.
#[must_use]
pub fn table(registry: &Registry, trials: &[Trial<'_>], time: Duration) -> String {
    let head = ["mutant", "file", "rule", "killed by", "seconds"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head)
        .chain(trials.iter().map(|trial| {
            let by = match &trial.outcome {
                Outcome::Killed => trial.killer.to_string(),
                other => format!("{}: {}", other.word(), trial.killer),
            };
            let seed = &trial.mutant.seed;
            let rule = seed.rule.clone();
            [seed.name.clone(), file(trial), rule, by, format!("{:.2}", trial.time.as_secs_f64())]
        }))
        .collect();
    let mut text = columns(&rows);
    for trial in trials.iter().filter(|trial| trial.outcome != Outcome::Killed) {
        let seed = &trial.mutant.seed;
        let (name, word) = (&seed.name, trial.outcome.word());
        let _ = writeln!(text, "\n{name}: {word}\n  {}, {}", file(trial), seed.function);
        let _ = writeln!(text, "  `{}` becomes `{}`", seed.find, seed.with);
        let _ = writeln!(text, "  {} should say `{}`; it says", trial.killer, trial.mutant.says);
        let lines: Vec<&str> = trial.output.lines().collect();
        for line in &lines[lines.len().saturating_sub(20)..] {
            let _ = writeln!(text, "  | {line}");
        }
    }
    let killed = killed(trials);
    let _ = writeln!(
        text,
        "\n{} mutants: {killed} killed, {} survived; {} equivalent (--list); {:.1} s",
        trials.len(),
        trials.len() - killed,
        registry.equivalent().len(),
        time.as_secs_f64()
    );
    text
}

/// The registry: every mutant with its change and its test, every equivalent change with its proof.
#[must_use]
pub fn list(registry: &Registry) -> String {
    let mut text = String::new();
    for mutant in registry.mutants() {
        let seed = &mutant.seed;
        let _ = writeln!(text, "{}\n  {}: {}", seed.name, seed.file.display(), seed.function);
        let _ = writeln!(text, "  `{}` becomes `{}`", seed.find, seed.with);
        let _ = writeln!(text, "  breaks {}", seed.rule);
        let _ = writeln!(text, "  killed by {}\n", registry.killer(mutant));
    }
    for entry in registry.equivalent() {
        let seed = &entry.seed;
        let _ = writeln!(text, "{} (equivalent)", seed.name);
        let _ = writeln!(text, "  {}: {}", seed.file.display(), seed.function);
        let _ = writeln!(text, "  `{}` becomes `{}`", seed.find, seed.with);
        let _ = writeln!(text, "  touches {}\n  {}\n", seed.rule, entry.proof.trim());
    }
    let (mutants, equivalent) = (registry.mutants().len(), registry.equivalent().len());
    let _ = writeln!(text, "{mutants} mutants, {equivalent} equivalent changes");
    text
}

/// Which tests notice a mutant.
#[must_use]
pub fn hunt(name: &str, hunts: &[Hunt]) -> String {
    let mut text = String::new();
    for hunt in hunts.iter().filter(|hunt| !matches!(hunt.outcome, Outcome::Survived { .. })) {
        let word = match hunt.outcome {
            Outcome::Killed => "fails",
            Outcome::Hung => "does not end",
            Outcome::Crashed => "crashes",
            _ => "fails without executing the defect",
        };
        let _ = writeln!(text, "{} {word}, {:.2} s", hunt.test, hunt.time.as_secs_f64());
        let _ = writeln!(text, "    {}", hunt.says);
    }
    let reached = hunts.iter().filter(|h| h.outcome == Outcome::Survived { reached: true }).count();
    let _ = writeln!(
        text,
        "{name}: {} tests; {} fail; {reached} pass though they execute it",
        hunts.len(),
        hunts.iter().filter(|hunt| hunt.outcome == Outcome::Killed).count(),
    );
    text
}

/// Rows in columns as wide as their widest cell; the last cell of a row stands right.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| match column + 1 == N {
                true => format!("{cell:>width$}", width = widths[column]),
                false => format!("{cell:width$}", width = widths[column]),
            })
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}
