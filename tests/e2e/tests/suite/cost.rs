//! What EL2's work costs, in instructions, TLB invalidations and flushes, by deterministic counting.

use std::process::Command;
use std::time::Duration;

use e2e::{bounded, host, hypctl};

/// From the vector to the ERET; zeroing and cleaning of the page are not counted.
const AT_MOST: u64 = 300;

/// EL2 instructions for a block of 2 MiB, which is 512 pages, at the most: to split it, to make it again.
const SPLIT_AT_MOST: u64 = 6000;
const COLLAPSE_AT_MOST: u64 = 30_000;
/// Blocks that one flush serves, at the least. Two flushes of 64 is what FEAT_BBM's nT takes.
const BLOCKS_A_FLUSH: u64 = 32;

/// Runs `hypctl bench` with these words and returns its numbers.
#[track_caller]
fn bench(words: &[&str]) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("numbers.json");
    let mut command = Command::new(hypctl());
    command.arg("bench").args(words).args(["--quiet", "--json"]).arg(&json);
    let _host = host::shared();
    let ended = bounded::run(&mut command, b"", Duration::from_secs(420)).unwrap();
    let code = ended.status.and_then(|status| status.code());
    assert_eq!(code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let text = std::fs::read_to_string(&json).unwrap();
    let numbers: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(numbers["identical"], true, "{text}");
    numbers
}

#[test]
fn a_populate_fault_stays_below_the_bound_and_two_runs_agree() {
    let numbers = bench(&["fault", "--quick"]);
    let (samples, median) = (&numbers["measure"]["samples"], &numbers["measure"]["median"]);
    assert!(samples.as_u64().is_some_and(|samples| samples >= 250), "{numbers}");
    assert!(median.as_u64().is_some_and(|median| (1..AT_MOST).contains(&median)), "{numbers}");
}

/// Bounds what `bench resize` counts with each level of FEAT_BBM; `tlbis_a_flush` is how many invalidations a flush
/// of 64 blocks has at the most.
#[track_caller]
fn resizing(words: &[&str], blocks: u64, levels: usize, tlbis_a_flush: u64) {
    let numbers = bench(words);
    let found = numbers["levels"].as_array().unwrap();
    assert_eq!(found.len(), levels, "{numbers}");
    for level in found {
        for (kind, at_most) in [("split", SPLIT_AT_MOST), ("collapse", COLLAPSE_AT_MOST)] {
            let count = |name: &str| level["resizing"][kind][name].as_u64().unwrap();
            let (flushes, tlbis) = (count("flushes"), count("tlbis"));
            assert_eq!(count("blocks"), blocks, "{kind}: {numbers}");
            assert!(count("instructions") <= blocks * at_most, "{kind}: {numbers}");
            assert!((1..=blocks / BLOCKS_A_FLUSH).contains(&flushes), "{kind}: {numbers}");
            assert!((1..=flushes * tlbis_a_flush).contains(&tlbis), "{kind}: {numbers}");
        }
    }
}

#[test]
fn one_gib_is_split_and_collapsed_with_one_flush_a_batch() {
    // By range, and then stage 1.
    resizing(&["resize"], 512, 3, 2 + 1);
}

#[test]
fn without_tlbi_by_range_a_flush_is_still_one_a_batch() {
    // Block by block, and then stage 1.
    resizing(&["resize", "--quick", "--cpu", "cortex-a53"], 128, 1, 64 + 1);
}
