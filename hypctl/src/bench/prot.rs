//! `hypctl bench prot`: what it takes EL2 to change the protections of a range, in each of the ways that there are.
//!
//! | run | other vCPUs | what is taken from it |
//! | --- | --- | --- |
//! | counted, twice | sit still, for QEMU counts the instructions of all CPUs | instructions, descriptor writes, TLBIs, barriers |
//! | at full speed, many rounds | write into the range all the time | times, as ratios within a round; faults met in the window; the longest window |
//!
//! For several numbers of CPUs, and RAM in pages and in blocks. Ranges of blocks begin at 512 pages: smaller ones are less than
//! a leaf. What was counted is then put on a cost model of real cores (`prot/cores.rs`).

use std::collections::BTreeSet;

use cells::{Counted, Timed};
use cores::{Cores, Projected};
use serde::Serialize;

use super::{Bench, BenchError, Cpus, Memory, publish, told};
use crate::cli::ProtArgs;
use crate::exit::Exit;
use crate::progress::Progress;
use crate::run::say;

mod cells;
mod cores;
mod plot;
mod table;

/// The guest that is measured.
const GUEST: &str = "bench-prot";

#[derive(Debug, Serialize)]
struct Numbers<'a> {
    schema: u32,
    what: &'a str,
    cpu: &'a str,
    mask: Option<String>,
    qemu: String,
    settings: Vec<Measured>,
    cores: Cores,
    identical: bool,
}

/// What was measured on so many CPUs, with RAM in leaves of one size.
#[derive(Debug, Serialize)]
struct Measured {
    cpus: u32,
    leaf: Leaf,
    /// How to repeat what was counted.
    command: String,
    counted: Vec<Counted>,
    /// How to repeat what was timed.
    timed_command: String,
    timed: Vec<Timed>,
    projected: Vec<Projected>,
}

/// What RAM is populated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Leaf {
    #[serde(rename = "4 KiB")]
    Page,
    #[serde(rename = "2 MiB")]
    Block,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Pages of the largest range that is counted.
    counted: u64,
    /// Of the largest that is timed, if RAM is in pages.
    timed: u64,
    /// Times that everything is timed; of ranges above 4096 pages, half of that.
    rounds: u32,
}

/// Runs `hypctl bench prot`.
pub fn prot(arguments: &ProtArgs) -> Exit {
    told(measure(arguments))
}

fn measure(wanted: &ProtArgs) -> Result<Exit, BenchError> {
    let ProtArgs { bench: arguments, plot, cpus, mask } = wanted;
    // Columns and curves go from few to many.
    let cpus: Vec<u32> = cpus.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let cores = Cores::published().map_err(|why| BenchError::Parameters(why.to_string()))?;
    let bench = Bench::prepare(arguments)?;
    let extent = match arguments.quick {
        true => Extent { counted: 4096, timed: 512, rounds: 5 },
        false => Extent { counted: 65536, timed: 65536, rounds: 6 },
    };
    let progress = Progress::new(cpus.len() as u64 * 2 * 3, arguments.quiet);
    let words = mask.as_ref().map_or(String::new(), |names| format!("mask={names} "));
    let (mut settings, mut identical) = (Vec::new(), true);
    for leaf in [Leaf::Page, Leaf::Block] {
        for &cpus in &cpus {
            let machine = (cpus, leaf, words.as_str());
            let (mut measured, same) = setting(&bench, machine, extent, &progress)?;
            measured.projected = cores.all(&measured.counted);
            settings.push(measured);
            identical &= same;
        }
    }
    drop(progress);
    let text = table::text(&arguments.cpu, &settings, &cores);
    let drawn = plot.as_ref().map(|path| (path, plot::draw(path, &arguments.cpu, &settings)));
    let numbers = Numbers {
        schema: 1,
        what: "EL2's work to change protections",
        cpu: &arguments.cpu,
        mask: mask.map(|names| names.to_string()),
        qemu: bench.qemu.version().to_string(),
        settings,
        cores,
        identical,
    };
    let published = publish(arguments.json.as_deref(), &numbers, &text, identical);
    if let Some((path, Err(why))) = drawn {
        say(&format!("{}: {why}", path.display()));
        return Ok(Exit::NO_REPORT);
    }
    Ok(published)
}

/// Measures on so many CPUs; says whether what was counted came to the same twice.
fn setting(
    bench: &Bench,
    (cpus, leaf, words): (u32, Leaf, &str),
    extent: Extent,
    progress: &Progress,
) -> Result<(Measured, bool), BenchError> {
    let timed = extent.timed.max(leaf.range());
    let range = extent.counted.max(timed) << 12;
    let memory = Memory { machine: range + (320 << 20), guest: range + (32 << 20) };
    let (block, words) = match leaf {
        Leaf::Page => (0, words.to_owned()),
        Leaf::Block => (1, format!("blocks {words}")),
    };
    let of = |icount: bool, pages: u64, more: &str| {
        let bootargs = format!("pages={pages} block={block}{more}");
        bench.setting_on(Cpus { count: cpus, icount }, GUEST, bootargs, &words, memory)
    };
    let step =
        |what: &str| progress.begin(format!("CPUs: {cpus}, leaves of {}: {what}", leaf.name()));

    let counted = of(true, extent.counted, "")?;
    step("counting");
    let first = counted.run()?;
    progress.done();
    step("counting again");
    let same = counted.run()? == first;
    progress.done();

    let write = if cpus > 1 { " write=1" } else { "" };
    let timed = of(false, timed, &format!(" rounds={}{write}", extent.rounds))?;
    step("timing");
    let ran = timed.run()?;
    progress.done();
    let measured = Measured {
        cpus,
        leaf,
        command: counted.command(),
        counted: Counted::all(&first.report.prot),
        timed_command: timed.command(),
        timed: Timed::all(&ran.report.prot),
        projected: Vec::new(),
    };
    Ok((measured, same))
}

impl Leaf {
    /// The range that most tables are about, in pages.
    const fn range(self) -> u64 {
        match self {
            Self::Page => 512,
            Self::Block => 4096,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Page => "4 KiB",
            Self::Block => "2 MiB",
        }
    }
}

impl Measured {
    fn counted(&self, work: &str, method: &str, pages: u64) -> Option<&Counted> {
        let is = |cell: &&Counted| {
            (cell.key.work, cell.key.method, cell.key.pages) == (work, method, pages)
        };
        self.counted.iter().find(is)
    }

    fn timed(&self, work: &str, method: &str, pages: u64) -> Option<&Timed> {
        let is = |cell: &&Timed| {
            (cell.key.work, cell.key.method, cell.key.pages) == (work, method, pages)
        };
        self.timed.iter().find(is)
    }
}
