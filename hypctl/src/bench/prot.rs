//! `hypctl bench prot`: what it takes EL2 to change the protections of a range, in each of the ways that there are.

use std::fmt::Write;

use hyp_abi::measure::{METHODS, Method, SIZES, Way, Work};
use hyp_core::report::ProtSample;
use serde::Serialize;

use super::{Bench, BenchError, Cpus, Memory, publish, told};
use crate::cli::BenchArgs;
use crate::exit::Exit;

/// The guest that is measured.
const GUEST: &str = "bench-prot";

#[derive(Debug, Serialize)]
struct Numbers<'a> {
    schema: u32,
    what: &'a str,
    cpu: &'a str,
    qemu: String,
    command: String,
    cells: Vec<Cell>,
    identical: bool,
}

/// A way to change a range of one size, and what it took.
#[derive(Debug, Serialize)]
struct Cell {
    method: &'static str,
    work: &'static str,
    #[serde(flatten)]
    took: ProtSample,
}

/// Runs `hypctl bench prot`.
pub fn prot(arguments: &BenchArgs) -> Exit {
    told(measure(arguments))
}

fn measure(arguments: &BenchArgs) -> Result<Exit, BenchError> {
    let bench = Bench::prepare(arguments)?;
    let pages: u64 = if arguments.quick { 4096 } else { 65536 };
    let range = pages << 12;
    let memory = Memory {
        machine: (range + (256 << 20)).next_multiple_of(2 << 20),
        guest: range + (32 << 20),
    };
    let cpus = Cpus { count: 1, icount: true };
    let setting = bench.setting_on(cpus, GUEST, format!("pages={pages}"), "", memory)?;
    let (ran, identical) = setting.run_twice()?;
    let cells: Vec<_> = ran.report.prot.iter().filter_map(Cell::of).collect();
    let text = table(&arguments.cpu, &cells);
    let numbers = Numbers {
        schema: 1,
        what: "EL2's work to change protections",
        cpu: &arguments.cpu,
        qemu: bench.qemu.version().to_string(),
        command: setting.command(),
        cells,
        identical,
    };
    Ok(publish(arguments.json.as_deref(), &numbers, &text, identical))
}

impl Cell {
    fn of(took: &ProtSample) -> Option<Self> {
        let way = Way::from_word(took.way)?;
        let method = METHODS.iter().find(|method| method.way(way.work) == way)?;
        Some(Self { method: method.name, work: name(way.work), took: took.clone() })
    }
}

const fn name(work: Work) -> &'static str {
    match work {
        Work::WriteProtect => "write-protect",
        Work::Unprotect => "un-protect",
        Work::Harvest => "harvest",
    }
}

/// Instructions a page of each method, by the size of the range.
fn table(cpu: &str, cells: &[Cell]) -> String {
    let mut text = String::new();
    for work in Work::ALL.map(name) {
        let _ = write!(text, "{work}, cpu {cpu}: EL2 instructions a page\n{:26}", "pages");
        for pages in SIZES {
            let _ = write!(text, "{pages:>9}");
        }
        for Method { name, .. } in METHODS {
            let _ = write!(text, "\n{name:26}");
            for pages in SIZES {
                let of =
                    |cell: &&Cell| (cell.method, cell.work, cell.took.pages) == (name, work, pages);
                if let Some(cell) = cells.iter().find(of) {
                    let _ = write!(text, "{:>9.1}", cell.took.ticks as f64 / pages as f64);
                }
            }
        }
        text.push('\n');
    }
    text
}
