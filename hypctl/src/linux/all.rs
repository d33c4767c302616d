//! `hypctl linux --all`: each of Debian's kernels on each tested CPU model, one after the other, and a table of how that went.
//!
//! A row is a `hypctl linux --script` like any other, with its verdict; it says how to repeat it alone if it did not pass.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use hyp_core::report::Report;
use serde::Serialize;

use super::LinuxError;
use super::cli::LinuxArgs;
use crate::catalogue::{self, BUSYBOX, KERNELS};
use crate::cli::shared::CommonArgs;
use crate::columns::aligned;
use crate::error::Error;
use crate::exit::Exit;
use crate::progress::Progress;
use crate::qemu::TESTED_CPUS;
use crate::run::say;
use crate::summary::Summary;
use crate::workspace::Workspace;

/// What the guest does where nobody has wishes: nothing but its way there and back.
const NOTHING: &str = "true";
/// The titles.
const TITLES: [&str; 10] = [
    "kernel",
    "cpu",
    "vcpus",
    "to init",
    "in all",
    "faults",
    "pages",
    "device accesses",
    "register traps",
    "outcome",
];
/// Columns of numbers, which are flush right.
const NUMBERS: std::ops::Range<usize> = 2..9;

/// A boot that is over.
#[derive(Debug, Serialize)]
struct Row {
    /// The kernel as it was asked for.
    kernel: &'static str,
    #[serde(flatten)]
    summary: Summary,
    /// All that was printed, of a run that did not pass.
    #[serde(skip)]
    console: String,
}

#[derive(Serialize)]
struct Table<'a> {
    schema: u32,
    what: &'a str,
    runs: &'a [Row],
}

/// Runs it.
pub(super) fn all(arguments: &LinuxArgs) -> Exit {
    let (rows, exit) = match boot_all(arguments) {
        Ok(ended) => ended,
        Err(error) => {
            say(&error.to_string());
            return Exit::USAGE;
        }
    };
    let _ = io::stdout().write_all(text(&rows).as_bytes());
    match arguments.common.json.as_deref().map(|path| (path, write(path, &rows))) {
        Some((path, Err(error))) => {
            say(&format!("{}: {error}", path.display()));
            if exit == Exit::OK { Exit::NO_REPORT } else { exit }
        }
        _ => exit,
    }
}

/// Boots one after the other; after a signal there are no more. The exit code is the first that is not 0.
fn boot_all(arguments: &LinuxArgs) -> Result<(Vec<Row>, Exit), Error> {
    crate::run::expect_folder("json", arguments.common.json.as_deref())?;
    // What cannot be brought is told before anything is booted.
    let workspace = Workspace::find()?;
    for name in KERNELS.into_iter().chain([BUSYBOX]) {
        catalogue::fetch(&workspace, name).map_err(LinuxError::from)?;
    }
    let progress =
        Progress::new((KERNELS.len() * TESTED_CPUS.len()) as u64, arguments.common.quiet);
    let (mut rows, mut exit) = (Vec::new(), Exit::OK);
    for kernel in KERNELS.into_iter().filter_map(|name| name.strip_prefix("linux-")) {
        for cpu in TESTED_CPUS {
            progress.begin(format!("Linux {kernel} on {cpu}"));
            let mut console = Vec::new();
            let summary = super::play(&one(arguments, kernel, cpu), &mut console)?;
            progress.done();
            let ended = Exit::from_report(summary.exit_code.into());
            let signal = matches!(summary.ended, "signal" | "console-gone");
            if exit == Exit::OK {
                exit = ended;
            }
            let console = String::from_utf8_lossy(&console).into_owned();
            rows.push(Row { kernel, summary, console });
            if signal {
                return Ok((rows, exit));
            }
        }
    }
    Ok((rows, exit))
}

/// The `hypctl linux` that a row is.
fn one(arguments: &LinuxArgs, kernel: &str, cpu: &str) -> LinuxArgs {
    LinuxArgs {
        kernel: kernel.to_owned(),
        script: Some(arguments.script.clone().unwrap_or_else(|| NOTHING.to_owned())),
        common: CommonArgs {
            cpu: cpu.to_owned(),
            json: None,
            quiet: true,
            ..arguments.common.clone()
        },
        ..arguments.clone()
    }
}

fn write(path: &Path, rows: &[Row]) -> io::Result<()> {
    let table = Table { schema: 1, what: "Debian's kernels on the tested CPU models", runs: rows };
    let mut text = serde_json::to_vec_pretty(&table)?;
    text.push(b'\n');
    crate::atomic::write(path, &text)
}

/// The table, and below it what did not pass.
fn text(rows: &[Row]) -> String {
    let mut lines = vec![TITLES.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(cells));
    let mut text = aligned(&lines, NUMBERS);
    for Row { kernel, summary, console } in rows.iter().filter(|row| row.summary.exit_code != 0) {
        let cpu = &summary.cpu;
        let why = summary.message.as_deref().unwrap_or(summary.ended);
        let _ = writeln!(text, "\n`--kernel {kernel} --cpu {cpu}` did not pass: {why}\n{console}");
    }
    let passed = rows.iter().filter(|row| row.summary.exit_code == 0).count();
    let _ = writeln!(text, "\n{passed} of {} passed", KERNELS.len() * TESTED_CPUS.len());
    text
}

fn cells(row: &Row) -> Vec<String> {
    let Row { kernel, summary, .. } = row;
    let report = summary.report.clone().map(serde_json::from_value::<Report>);
    let report = report.and_then(Result::ok);
    let boot = summary.boot.as_ref();
    let up = boot.and_then(|boot| boot.up.as_ref());
    let unknown = || "-".to_owned();
    let count =
        |of: fn(&Report) -> u64| report.as_ref().map_or_else(unknown, |it| of(it).to_string());
    let seconds = |time: Option<f64>| time.map_or_else(unknown, |it| format!("{it:.1} s"));
    let outcome = match (&summary.message, &report) {
        (Some(message), _) => message.lines().next().unwrap_or_default().to_owned(),
        (None, Some(report)) => report.outcome.to_string(),
        (None, None) => summary.ended.to_owned(),
    };
    vec![
        up.map_or_else(|| (*kernel).to_owned(), |up| up.release.clone()),
        summary.cpu.clone(),
        up.map_or_else(unknown, |up| up.cpus.to_string()),
        seconds(boot.and_then(|boot| boot.seconds)),
        seconds(Some(summary.seconds)),
        count(|it| it.stats.faults),
        count(|it| it.stats.installed),
        count(|it| it.stats.mmio),
        count(|it| it.stats.sysregs),
        outcome,
    ]
}

#[cfg(test)]
mod tests {
    use hyp_core::report::Outcome;

    use super::super::marks::{Boot, Up};
    use super::super::tests::parsed;
    use super::*;

    fn row(cpu: &str, exit: Exit) -> Row {
        let mut report = Report::new(Outcome::PoweredOff);
        (report.stats.faults, report.stats.installed) = (70_001, 9002);
        let up = Up { release: "6.12.107".to_owned(), cpus: 2 };
        let summary = Summary {
            cpu: cpu.to_owned(),
            exit_code: exit.code(),
            ended: "report",
            seconds: 9.04,
            message: (exit != Exit::OK).then(|| "the kernel complained".to_owned()),
            report: serde_json::to_value(report).ok(),
            boot: Some(Boot { seconds: Some(4.26), up: Some(up), ..Boot::default() }),
            ..Summary::default()
        };
        Row { kernel: "6.12", summary, console: "BUG: here".to_owned() }
    }

    #[test]
    fn a_row_says_what_came_up_when_and_with_how_much_work() {
        let text = text(&[row("max", Exit::OK)]);
        let cells: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let wanted = ["6.12.107", "max", "2", "4.3", "s", "9.0", "s", "70001", "9002", "0", "0"];
        assert_eq!(cells[..11], wanted, "{text}");
        assert!(text.contains("the guest powered off\n\n1 of 8 passed\n"), "{text}");
    }

    #[test]
    fn what_did_not_pass_is_named_with_its_console() {
        let text = text(&[row("max", Exit::OK), row("cortex-a53", Exit::VERDICT)]);
        let wanted =
            "`--kernel 6.12 --cpu cortex-a53` did not pass: the kernel complained\nBUG: here";
        assert!(text.contains(wanted) && text.matches("did not pass").count() == 1, "{text}");
        assert!(text.ends_with("1 of 8 passed\n"), "{text}");
    }

    #[test]
    fn a_run_that_said_nothing_has_a_row_all_the_same() {
        let summary = Summary { cpu: "max".to_owned(), ended: "no-report", ..Summary::default() };
        let row = Row { kernel: "6.1", summary, console: String::new() };
        let cells = cells(&row);
        assert_eq!(cells[..4], ["6.1", "max", "-", "-"]);
        assert_eq!(cells.last().unwrap(), "no-report");
    }

    #[test]
    fn each_is_the_run_that_was_asked_for_on_its_own_model() {
        let words = ["--all", "--vcpus", "4", "--smp", "2", "--script", "nproc", "--json", "f"];
        let linux = one(&parsed(&words), "6.1", "cortex-a76");
        assert_eq!((linux.kernel.as_str(), linux.common.cpu.as_str()), ("6.1", "cortex-a76"));
        assert_eq!((linux.vcpus, linux.smp, linux.common.json), (4, Some(2), None));
        assert_eq!(linux.script.as_deref(), Some("nproc"));
        assert_eq!(one(&parsed(&["--all"]), "6.1", "max").script.as_deref(), Some(NOTHING));
    }
}
