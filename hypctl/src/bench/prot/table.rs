//! The tables on the terminal.

use std::fmt::Write;

use hyp_abi::measure::{METHODS, Method, SIZES, Work};

use super::cells::name;
use super::cores::Cores;
use super::{Leaf, Measured};

/// Width of a method's name.
const NAME: usize = 26;
/// Works of which times are shown; the others' are in the JSON.
const TIMED: [Work; 2] = [Work::WriteProtect, Work::Harvest];

/// All tables.
pub(super) fn text(cpu: &str, settings: &[Measured], cores: &Cores) -> String {
    let mut text = String::new();
    for leaf in [Leaf::Page, Leaf::Block] {
        let settings: Vec<_> = settings.iter().filter(|one| one.leaf == leaf).collect();
        let Some(one) = settings.first() else { continue };
        let _ = writeln!(text, "\ncpu {cpu}, leaves of {}", leaf.name());
        for work in Work::ALL.map(name) {
            instructions(&mut text, work, one);
        }
        others(&mut text, &settings);
        flushes(&mut text, one);
        for work in TIMED.map(name) {
            times(&mut text, work, &settings);
        }
        windows(&mut text, &settings, cores);
        projected(&mut text, one, cores);
    }
    text
}

/// A table: what is in the first line, and then a line for each method.
fn rows(text: &mut String, title: &str, columns: &[String], row: impl Fn(Method) -> String) {
    let _ = writeln!(text, "\n{title:NAME$}{}", columns.concat());
    for method in METHODS {
        let _ = writeln!(text, "{:NAME$}{}", method.name, row(method));
    }
}

/// EL2 instructions a page of 4 KiB, by the size of the range.
fn instructions(text: &mut String, work: &str, one: &Measured) {
    let there = |&pages: &u64| one.counted(work, METHODS[0].name, pages).is_some();
    let sizes: Vec<_> = SIZES.into_iter().filter(there).collect();
    let columns: Vec<_> = sizes.iter().map(|pages| format!("{pages:>10}")).collect();
    rows(text, &format!("{work}, pages"), &columns, |method| {
        let cell = |&pages: &u64| one.counted(work, method.name, pages);
        let each = sizes.iter().filter_map(cell).map(|cell| format!("{:>10.2}", cell.each()));
        each.collect::<String>() + "   instructions a page"
    });
}

/// Whether more CPUs, which sit still, make a difference to what is counted.
fn others(text: &mut String, settings: &[&Measured]) {
    let Some((one, others)) = settings.split_first() else { return };
    for other in others {
        let differ = other.counted.iter().filter(|cell| !one.counted.contains(cell)).count();
        let _ = match differ {
            0 => writeln!(text, "{} CPUs, the others still: the same counts", other.cpus),
            _ => writeln!(text, "{} CPUs, the others still: {differ} counts differ", other.cpus),
        };
    }
}

/// Descriptor writes, TLB invalidations and barriers.
fn flushes(text: &mut String, one: &Measured) {
    let (work, range) = (name(Work::WriteProtect), one.leaf.range());
    let columns = ["writes", "DSBs", "TLBIs"].map(|column| format!("{column:>10}"));
    rows(text, &format!("{work}, {range} pages"), &columns, |method| {
        let Some(cell) = one.counted(work, method.name, range) else { return String::new() };
        let kinds = cell.tlbi.iter().map(|(kind, count)| format!("{count} {kind}"));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        format!("{:>10}{:>10}{:>10}   {kinds}", cell.writes, cell.dsb, cell.tlbis())
    });
}

/// Wall time relative to the first method.
fn times(text: &mut String, work: &str, settings: &[&Measured]) {
    let Some(range) = settings.first().map(|one| one.leaf.range()) else { return };
    let column = |one: &&Measured| format!("{:>12}{:>16}", cpus(one.cpus), "quartiles");
    let columns: Vec<_> = settings.iter().map(column).collect();
    rows(text, &format!("{work}, {range} pages"), &columns, |method| {
        let cell = |one: &&Measured| one.timed(work, method.name, range).map(|cell| cell.ratio);
        let ratios = settings.iter().filter_map(cell).map(|ratio| {
            let quartiles = format!("{:.4}-{:.4}", ratio.low, ratio.high);
            format!("{:>12.4}{quartiles:>16}", ratio.median)
        });
        ratios.collect::<String>() + "   of the first's time"
    });
}

/// What the guest's other vCPUs meet while they write into the range.
fn windows(text: &mut String, settings: &[&Measured], cores: &Cores) {
    for one in settings.iter().filter(|one| one.cpus > 1) {
        let range = one.leaf.range();
        let column =
            |work| format!("{:>20}{:>12}{:>12}", format!("{work}: us"), "longest", "faults met");
        let columns = TIMED.map(name).map(column);
        let first = one.timed(name(TIMED[0]), METHODS[0].name, range);
        let rounds = first.map_or(0, |cell| cell.rounds);
        rows(text, &format!("{}, {range} pages", cpus(one.cpus)), &columns, |method| {
            let cell = |work| one.timed(work, method.name, range);
            let cells = TIMED.map(name).into_iter().filter_map(cell).map(|cell| {
                format!("{:>20.1}{:>12.1}{:>12}", cell.window.median, cell.longest, cell.met)
            });
            cells.collect::<String>() + &format!("   window; faults in {rounds} rounds")
        });
    }
    let _ = writeln!(
        text,
        "a fault met: {:.2} us at the least on a real core, and EL2's work",
        cores.exit()
    );
}

/// What the counts would come to on real cores.
fn projected(text: &mut String, one: &Measured, cores: &Cores) {
    let (work, range) = (name(Work::WriteProtect), one.leaf.range());
    let columns: Vec<_> = cores.flush.iter().map(|flush| format!("{:>28}", flush.name)).collect();
    rows(text, &format!("{work}, {range} pages"), &columns, |method| {
        let Some(cell) = one.counted(work, method.name, range) else { return String::new() };
        let projected = cores.flush.iter().map(|flush| {
            let time = cores.project(cell, flush);
            format!("{:>28}", format!("{:.1}-{:.1} us", time.low, time.high))
        });
        projected.collect::<String>() + "   projected"
    });
}

fn cpus(count: u32) -> String {
    if count == 1 { "1 CPU".into() } else { format!("{count} CPUs") }
}
