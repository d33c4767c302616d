//! `hypctl bench linux`: what it costs Debian's Linux to come up under the hypervisor instead of on QEMU alone.
//!
//! | figure | how |
//! | --- | --- |
//! | wall time from QEMU's start to the first program | pairs of runs, one of each kind, which come first in turn; the median of the ratios within the pairs, and their spread |
//! | instructions to the same point | virtual time of a run under `-icount shift=0` on one CPU: a nanosecond is an instruction; two runs must agree |
//! | instructions of EL2 by what took it out of the guest, from its start to the power-off | one run of the build that measures, under `-icount shift=0` on one CPU |
//!
//! On both sides QEMU loads the same kernel and initramfs; the device tree, command line, RAM and CPUs of the kernel are the same. Virtual
//! time is the counter that the first program reads. It begins with QEMU; that of a guest begins with its VM, at a value of the
//! physical counter that the hypervisor reports. So EL2's own start is counted, and so is the copying of the image into place.

use std::fmt::Write;

use hyp_core::report::{AllSpent, Report, Spent};
use serde::Serialize;

use super::{BenchError, publish, told};
use crate::build::build;
use crate::cli::LinuxBenchArgs;
use crate::cli::shared::{CommonArgs, defaults};
use crate::error::Error;
use crate::exit::Exit;
use crate::linux::boots::{Booted, Boots, On};
use crate::linux::cli::LinuxArgs;
use crate::progress::Progress;
use crate::workspace::{Variant, Workspace};

/// Pairs of a quick run.
const QUICK: u32 = 3;
/// Why there is no figure.
const NOT_STARTED: &str = "the guest's first program did not say when it started";
/// Instructions are nanoseconds.
const NANOSECONDS: u128 = 1_000_000_000;

#[derive(Debug, Serialize)]
struct Numbers<'a> {
    schema: u32,
    what: &'a str,
    kernel: String,
    append: &'a str,
    cpu: &'a str,
    vcpus: u32,
    qemu: Option<String>,
    plain_command: Option<String>,
    command: Option<String>,
    /// Seconds: on QEMU alone, under the hypervisor.
    pairs: Vec<[f64; 2]>,
    plain: Spread,
    hypervisor: Spread,
    ratio: Spread,
    /// Instructions on one CPU: on QEMU alone, under the hypervisor.
    instructions: [u64; 2],
    instruction_ratio: f64,
    /// EL2's, by what took it out of the guest, from the guest's start to its power-off.
    spent: AllSpent,
    identical: bool,
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    /// Of values, of which there is one at least.
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let (last, half) = (values.len().saturating_sub(1), values.len() / 2);
        Self { min: at(0), median: (at(last / 2) + at(half)) / 2.0, max: at(last) }
    }
}

/// Runs `hypctl bench linux`.
pub fn linux(arguments: &LinuxBenchArgs) -> Exit {
    told(measure(arguments))
}

fn measure(arguments: &LinuxBenchArgs) -> Result<Exit, BenchError> {
    let bench = &arguments.bench;
    let workspace = Workspace::find().map_err(Error::from)?;
    build(&workspace, Variant::Plain, bench.quiet).map_err(Error::from)?;
    build(&workspace, Variant::Measure, bench.quiet).map_err(Error::from)?;
    let boots = Boots::of(workspace, linux_arguments(arguments))?;
    let pairs = if bench.quick { arguments.pairs.min(QUICK) } else { arguments.pairs };
    let progress = Progress::new(2 * u64::from(pairs) + 5, bench.quiet);
    let boot = |on, cpus, icount| {
        progress.begin(format!("{on:?}, {cpus} CPUs"));
        let booted = came_up(boots.boot(on, cpus, icount));
        progress.done();
        booted
    };

    let count = |on| {
        let (first, second) = (boot(on, 1, true)?, boot(on, 1, true)?);
        let instructions = instructions(&first)?;
        let identical = instructions == self::instructions(&second)?;
        Ok::<_, BenchError>((first, instructions, identical))
    };
    let (alone, plain_instructions, plain_identical) = count(On::Plain)?;
    let (under, hyp_instructions, hyp_identical) = count(On::Hypervisor)?;
    let spent = report(&boot(On::Measured, 1, true)?)?.spent;

    let mut times = Vec::new();
    for pair in 0..pairs {
        let time = |on| seconds(&boot(on, arguments.vcpus, false)?);
        times.push(if pair % 2 == 0 {
            let plain = time(On::Plain)?;
            [plain, time(On::Hypervisor)?]
        } else {
            let hypervisor = time(On::Hypervisor)?;
            [time(On::Plain)?, hypervisor]
        });
    }
    drop(progress);

    let identical = plain_identical && hyp_identical;
    let release = alone.summary.boot.as_ref().and_then(|boot| boot.up.as_ref());
    let numbers = Numbers {
        schema: 2,
        what: "Linux to its first program, on QEMU alone and under the hypervisor",
        kernel: release.map(|up| up.release.clone()).unwrap_or_default(),
        append: &arguments.append,
        cpu: &bench.cpu,
        vcpus: arguments.vcpus,
        qemu: alone.summary.qemu.clone(),
        plain_command: alone.summary.command.clone(),
        command: under.summary.command.clone(),
        plain: Spread::of(times.iter().map(|pair| pair[0])),
        hypervisor: Spread::of(times.iter().map(|pair| pair[1])),
        ratio: Spread::of(times.iter().map(|pair| pair[1] / pair[0])),
        pairs: times,
        instructions: [plain_instructions, hyp_instructions],
        instruction_ratio: hyp_instructions as f64 / plain_instructions as f64,
        spent,
        identical,
    };
    Ok(publish(bench.json.as_deref(), &numbers, &table(&numbers), identical))
}

fn linux_arguments(arguments: &LinuxBenchArgs) -> LinuxArgs {
    let usual = usual(&arguments.bench.cpu);
    LinuxArgs {
        kernel: arguments.kernel.clone(),
        append: Some(arguments.append.clone()),
        common: CommonArgs { blocks: arguments.blocks, ..usual.common },
        ..usual
    }
}

/// What all boots to be measured have in common, on this CPU model.
pub(super) fn usual(cpu: &str) -> LinuxArgs {
    let defaults = defaults::<LinuxArgs>();
    LinuxArgs {
        script: Some("true".to_owned()),
        common: CommonArgs {
            cpu: cpu.to_owned(),
            timeout: Some(super::TIMEOUT),
            quiet: true,
            no_build: true,
            ..defaults.common
        },
        ..defaults
    }
}

/// The hypervisor's report of a boot.
pub(super) fn report(booted: &Booted) -> Result<Report, BenchError> {
    let report = booted.summary.report.clone();
    let report = report.and_then(|report| serde_json::from_value(report).ok());
    known(booted, "the run has no report", report)
}

/// A boot that went as it should.
pub(super) fn came_up(booted: Booted) -> Result<Booted, BenchError> {
    let Booted { summary, console } = &booted;
    if summary.exit_code == Exit::OK.code() {
        return Ok(booted);
    }
    let text = String::from_utf8_lossy(console);
    let lines: Vec<_> = text.lines().collect();
    Err(BenchError::Run {
        why: summary.message.clone().unwrap_or_else(|| summary.ended.to_owned()),
        exit: Exit::from_report(summary.exit_code.into()),
        console: lines[lines.len().saturating_sub(20)..].join("\n"),
    })
}

fn seconds(booted: &Booted) -> Result<f64, BenchError> {
    known(booted, NOT_STARTED, booted.summary.boot.as_ref().and_then(|boot| boot.seconds))
}

/// Virtual time from QEMU's start to the first program.
fn instructions(booted: &Booted) -> Result<u64, BenchError> {
    let init = known(booted, NOT_STARTED, booted.summary.boot.as_ref().and_then(|boot| boot.init))?;
    let report = booted.summary.report.as_ref();
    let began = report.map_or(0, |report| report["began"].as_u64().unwrap_or(0));
    let ticks = u128::from(init.counter) + u128::from(began);
    let nanoseconds = ticks * NANOSECONDS / u128::from(init.frequency.max(1));
    known(booted, NOT_STARTED, u64::try_from(nanoseconds).ok())
}

/// What a boot has told, or why there is nothing.
pub(super) fn known<T>(booted: &Booted, why: &str, what: Option<T>) -> Result<T, BenchError> {
    what.ok_or_else(|| BenchError::Run {
        why: why.to_owned(),
        exit: Exit::NO_REPORT,
        console: String::from_utf8_lossy(&booted.console).into_owned(),
    })
}

fn table(numbers: &Numbers<'_>) -> String {
    let Numbers { kernel, append, cpu, vcpus, pairs, instructions, .. } = numbers;
    let mut text = format!(
        "Linux {kernel} to its first program, cpu {cpu}, `{append}`\n\
         wall time, {vcpus} CPUs, {} pairs{:8}{:>8}{:>8}{:>8}\n",
        pairs.len(),
        "",
        "min",
        "median",
        "max"
    );
    for (name, spread, unit) in [
        ("on QEMU alone", numbers.plain, " s"),
        ("under the hypervisor", numbers.hypervisor, " s"),
        ("ratio within a pair", numbers.ratio, ""),
    ] {
        let Spread { min, median, max } = spread;
        let _ = writeln!(text, "  {name:32}{min:>8.2}{median:>8.2}{max:>8.2}{unit}");
    }
    let [plain, hypervisor] = instructions.map(|count| count as f64 / 1e6);
    let _ = writeln!(
        text,
        "instructions, 1 CPU: {plain:.1} million alone, {hypervisor:.1} million under the hypervisor: ratio {:.3}",
        numbers.instruction_ratio
    );
    let all: u64 = numbers.spent.values().map(|spent| spent.instructions).sum();
    let _ = writeln!(text, "EL2 until the power-off: {:.1} million", all as f64 / 1e6);
    for (cause, Spent { count, instructions }) in &numbers.spent {
        let (name, millions) = (cause.name(), *instructions as f64 / 1e6);
        let each = instructions / count.max(&1);
        let _ = writeln!(text, "  {name:18}{millions:>8.2} million in{count:>8}, {each} each");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_of_an_even_number() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
        assert_eq!(Spread::of([9.0, 1.0, 5.0]), Spread { min: 1.0, median: 5.0, max: 9.0 });
        assert_eq!(Spread::of([7.0]), Spread { min: 7.0, median: 7.0, max: 7.0 });
    }
}
