//! `./just bench-host`: `stage2`, its peers, and bare loops over the same memory.
//!
//! | file | what |
//! | --- | --- |
//! | `main.rs` | the command, the list of works and their limits |
//! | `work.rs` | the pages that all work on, the clock, the checks |
//! | `arena.rs` | the memory that all build tables in |
//! | `bare.rs` | the memory accesses alone |
//! | `ours.rs`, `peers/` | the same work through the libraries' public interfaces |
//! | `threads.rs` | two at once |
//! | `report.rs` | medians, ratios, table, JSON |
//!
//! Every contender of a work runs once in each round, in turn, and each run's result is checked page by page. A ratio
//! is taken within a round, between runs a few milliseconds apart, and the median of the rounds' ratios
//! is what a limit is held against: so a machine that is busy, or changes its clock, disturbs both sides.

mod arena;
mod bare;
mod ours;
mod peers;
mod report;
mod threads;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use peers::{aarch64_paging, page_table_multiarch};
use report::{Report, Verdict};
use work::Bench;

/// Measures stage2 on this machine beside its peers and bare loops: 1 GiB in pages of 4 KiB.
///
/// Prints a table. Exit code: 0 if every limit holds, 1 if one is exceeded. There is no TLB on the host: what is
/// measured is software.
#[derive(Parser)]
#[command(name = "./just bench-host", bin_name = "./just bench-host")]
struct Cli {
    /// Write the figures of all rounds as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 41,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Map less than 1 GiB, to see that it runs: limits are not judged then
    #[arg(long, value_name = "N", default_value_t = GIB,
          value_parser = clap::value_parser!(u32).range(4..=i64::from(GIB)))]
    mib: u32,
}

/// 1 GiB, in MiB.
const GIB: u32 = 1024;
/// What one table of level 3 maps, in MiB.
const TABLE_MIB: u32 = 2;

/// Somebody who does a work.
struct Contender {
    name: &'static str,
    run: fn(&mut Bench) -> Duration,
}

/// What a contender's time may be at most, as a multiple of another's.
struct Limit {
    who: usize,
    of: usize,
    at_most: f64,
}

/// One work and all who do it.
struct Work {
    name: &'static str,
    contenders: Vec<Contender>,
    limits: Vec<Limit>,
}

macro_rules! work {
    ($name:literal: $($contender:literal $run:path),+; $($who:literal / $of:literal <= $at_most:expr),*) => {
        Work {
            name: $name,
            contenders: vec![$(Contender { name: $contender, run: $run }),+],
            limits: vec![$(Limit { who: $who, of: $of, at_most: $at_most }),*],
        }
    };
}

/// A limit names contenders by their place. The first is what the others are compared with.
fn works() -> Vec<Work> {
    vec![
        work!("install pages one by one":
            "load+CAS loop" bare::load_cas,
            "stage2" ours::install,
            "walk+CAS loop" bare::walk_cas,
            "stage2, a guard each" ours::install_guarded,
            "aarch64-paging, locked" aarch64_paging::install,
            "page_table_multiarch, locked" page_table_multiarch::install;
            1 / 0 <= 1.3, 1 / 4 <= 1.0, 1 / 5 <= 1.0),
        work!("map a range, whole tables":
            "plain-store loop" bare::store,
            "stage2" ours::map,
            "aarch64-paging" aarch64_paging::map,
            "page_table_multiarch" page_table_multiarch::map;
            1 / 0 <= 2.0, 1 / 2 <= 1.0 / 3.0),
        work!("translate, random":
            "three-level walk" bare::translate,
            "stage2" ours::translate,
            "aarch64-paging" aarch64_paging::translate,
            "page_table_multiarch" page_table_multiarch::translate;
            1 / 0 <= 1.3),
        work!("unmap, harvesting every frame":
            "swap+store loop" bare::swap_store,
            "stage2" ours::unmap,
            "swap loop" bare::swap,
            "swaps, then stores" bare::swap_then_store,
            "aarch64-paging" aarch64_paging::unmap,
            "page_table_multiarch" page_table_multiarch::unmap;
            1 / 0 <= 1.4),
        work!("split blocks of 2 MiB":
            "plain-store loop" bare::store,
            "stage2" ours::split,
            "aarch64-paging" aarch64_paging::split;
            1 / 2 <= 0.3),
        work!("collapse into blocks of 2 MiB":
            "swap loop" bare::swap,
            "stage2" ours::collapse;
            1 / 0 <= 3.0),
        work!("two threads install disjoint halves":
            "load+CAS loop" bare::load_cas_by_two,
            "stage2" ours::install_by_two;),
    ]
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let works = works();
    let mut bench = Bench::new((cli.mib / TABLE_MIB) as usize);
    let mut report = Report::new(&works, bench.pages().count, cli.rounds, cli.mib == GIB);
    // The first round warms up.
    for round in 0..=cli.rounds {
        report::progress(round, cli.rounds);
        for (place, work) in works.iter().enumerate() {
            let times = one_round(work, round as usize, &mut bench);
            if round > 0 {
                report.add(place, &times);
            }
        }
    }
    report.print();
    if let Some(path) = &cli.json
        && let Err(error) = std::fs::write(path, report.json())
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    let exceeded = report.verdicts().any(|verdict| verdict == Verdict::Exceeded);
    if exceeded { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The times of all contenders. Each round begins with another one: nobody always runs after the same
/// neighbour's caches.
fn one_round(work: &Work, round: usize, bench: &mut Bench) -> Vec<Duration> {
    let count = work.contenders.len();
    let mut times = vec![Duration::ZERO; count];
    for place in 0..count {
        let who = (place + round) % count;
        times[who] = (work.contenders[who].run)(bench);
    }
    times
}
