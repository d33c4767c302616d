//! What EL2's work costs, in instructions, TLB invalidations and flushes, by deterministic counting.

use std::process::Command;
use std::time::Duration;

use e2e::{bounded, host, hypctl};
use hyp_abi::measure::METHODS;

/// From the vector to the ERET; zeroing and cleaning of the page are not counted.
const AT_MOST: u64 = 240;
/// Of a write to a clean page that is logged, where hardware does not manage the dirty state: it may have no more.
const REFAULT: u64 = 240;

/// Of an access without memory that is recovered by the scratch page, and recorded, in the window that the vCPU has last met.
const RECOVER: u64 = 285;
/// In another.
const TURNS: u64 = 410;

/// Instructions a page of 4 KiB, of 512 pages and more, flush included, at the most: write-protected or harvested in place.
const IN_PLACE: u64 = 12;
/// Harvested by a break.
const BROKEN: u64 = 25;
/// What `bench prot` does to a range.
const WORKS: [&str; 4] = ["write-protect", "un-protect", "first harvest", "harvest"];

/// What a kind of call may cost.
struct Bounds {
    /// EL2 instructions for a block of 2 MiB, which is 512 pages, at the most.
    instructions: u64,
    /// Blocks that one flush serves, at the least.
    blocks_a_flush: u64,
}

/// With FEAT_BBM's nT a batch of 64 takes two flushes; and one batch is cut where its table ends.
const SPLIT: Bounds = Bounds { instructions: 6000, blocks_a_flush: 28 };
const COLLAPSE: Bounds = Bounds { instructions: 30_000, blocks_a_flush: 32 };
/// Every byte is read, written, and the old one overwritten.
const COPY: Bounds = Bounds { instructions: 1_600_000, blocks_a_flush: 4 };

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
fn faults_stay_below_their_bounds_and_two_runs_agree_also_under_linux() {
    let numbers = faults(&["fault", "--quick", "--linux"], REFAULT);
    let linux = &numbers["linux"];
    let kernel = linux["kernel"].as_str().unwrap_or_default();
    assert!(kernel.starts_with("6.12"), "{numbers}");
    for (fault, least) in [("measure", 5000), ("refault", 200)] {
        let [here, bare] = [linux, &numbers].map(|numbers| numbers[fault]["median"].as_u64());
        assert!(here.is_some() && here <= bare, "{numbers}");
        assert!(linux[fault]["samples"].as_u64() >= Some(least), "{numbers}");
    }
    assert_eq!(linux["not_worse"], true, "{numbers}");
}

#[test]
fn without_lse_and_hardware_updates_faults_stay_below_their_bounds_too() {
    faults(&["fault", "--quick", "--cpu", "cortex-a53"], AT_MOST);
}

#[track_caller]
fn faults(words: &[&str], refault: u64) -> serde_json::Value {
    let numbers = bench(words);
    let (samples, median) = (&numbers["measure"]["samples"], &numbers["measure"]["median"]);
    assert!(samples.as_u64().is_some_and(|samples| samples >= 250), "{numbers}");
    assert!(median.as_u64().is_some_and(|median| (1..AT_MOST).contains(&median)), "{numbers}");
    let (samples, median) = (&numbers["refault"]["samples"], &numbers["refault"]["median"]);
    assert!(samples.as_u64().is_some_and(|samples| samples >= 500), "{numbers}");
    assert!(median.as_u64().is_some_and(|median| (1..=refault).contains(&median)), "{numbers}");
    let (samples, median) = (&numbers["recover"]["samples"], &numbers["recover"]["median"]);
    assert!(samples.as_u64().is_some_and(|samples| samples >= 500), "{numbers}");
    assert!(median.as_u64().is_some_and(|median| (1..RECOVER).contains(&median)), "{numbers}");
    let (samples, median) = (&numbers["turns"]["samples"], &numbers["turns"]["median"]);
    assert!(samples.as_u64().is_some_and(|samples| samples >= 500), "{numbers}");
    assert!(median.as_u64().is_some_and(|median| (1..TURNS).contains(&median)), "{numbers}");
    numbers
}

/// Bounds what `bench resize` counts with each level of FEAT_BBM; `tlbis` is how many invalidations a flush has at the
/// most, for `blocks` blocks or fewer.
#[track_caller]
fn resizing(words: &[&str], blocks: u64, levels: usize, tlbis: u64) {
    let numbers = bench(words);
    let check = |work: &serde_json::Value, blocks: u64, bounds: Bounds| {
        let count = |name: &str| work[name].as_u64().unwrap();
        let flushes = count("flushes");
        assert_eq!(count("blocks"), blocks, "{numbers}");
        assert!(count("instructions") <= blocks * bounds.instructions, "{work} of {numbers}");
        assert!((1..=blocks / bounds.blocks_a_flush).contains(&flushes), "{work} of {numbers}");
        assert!((1..=flushes * tlbis).contains(&count("tlbis")), "{work} of {numbers}");
    };
    let found = numbers["levels"].as_array().unwrap();
    assert_eq!(found.len(), levels, "{numbers}");
    for level in found {
        check(&level["resizing"]["split"], blocks, SPLIT);
        check(&level["resizing"]["collapse"], blocks, COLLAPSE);
    }
    // A part of it is enough for copies.
    check(&numbers["copy"]["work"], blocks / 4, COPY);
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

/// A cell of what `bench prot` counted: the method and the work by name, the range in pages.
#[track_caller]
fn counted<'n>(
    setting: &'n serde_json::Value,
    (method, work, pages): (&str, &str, u64),
) -> &'n serde_json::Value {
    let is = |cell: &&serde_json::Value| {
        cell["method"] == method && cell["work"] == work && cell["pages"] == pages
    };
    let found: Vec<_> = setting["counted"].as_array().unwrap().iter().filter(is).collect();
    let [cell] = found[..] else { panic!("{method}, {work}, {pages}: {found:?}") };
    cell
}

/// What was measured with this many CPUs and leaves of this size.
#[track_caller]
fn setting<'n>(numbers: &'n serde_json::Value, cpus: u64, leaf: &str) -> &'n serde_json::Value {
    let is = |one: &&serde_json::Value| one["cpus"] == cpus && one["leaf"] == leaf;
    numbers["settings"].as_array().unwrap().iter().find(is).unwrap()
}

#[test]
fn changes_of_protections_count_the_same_twice_and_on_any_number_of_cpus() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let numbers = bench(&["prot", "--quick", "--cpus", "1,2", "--plot", plot.to_str().unwrap()]);
    for leaf in ["4 KiB", "2 MiB"] {
        let [one, two] = [1, 2].map(|cpus| setting(&numbers, cpus, leaf));
        assert_eq!(one["counted"], two["counted"], "the other CPU sits still");
        for (method, work) in
            METHODS.iter().flat_map(|method| WORKS.map(|work| (method.name, work)))
        {
            for pages in [512, 4096] {
                let cell = counted(one, (method, work, pages));
                let [took, window] = ["instructions", "window"].map(|name| cell[name].as_u64());
                assert!(window > Some(0) && window <= took, "{cell}");
            }
        }
        // Everything was timed, too, though nothing can be said of the times on a busy machine.
        let timed = two["timed"].as_array().unwrap().len();
        let sizes = if leaf == "4 KiB" { 4 } else { 2 };
        assert_eq!(timed, sizes * METHODS.len() * WORKS.len());
    }
    let one = setting(&numbers, 1, "4 KiB");
    for pages in [512, 4096] {
        let each = |method, work| {
            let cell = counted(one, (method, work, pages));
            cell["instructions"].as_u64().unwrap().div_ceil(pages)
        };
        for method in ["in place, TLBI by range", "in place, TLBI of the VM"] {
            for work in ["write-protect", "harvest"] {
                assert!(each(method, work) <= IN_PLACE, "{work}, {method}, {pages}: {one}");
            }
        }
        assert!(each("break, batched", "harvest") <= BROKEN, "{pages}: {one}");
    }
    for work in WORKS {
        let tlbi = |method| &counted(one, (method, work, 512))["tlbi"];
        let each = serde_json::json!({ "IPAS2E1IS": 512, "VMALLE1IS": 512 });
        assert_eq!(*tlbi("break, page by page"), each, "{work}");
        assert_eq!(*tlbi("in place, page by page"), each, "{work}");
        let once = serde_json::json!({ "IPAS2E1IS": 512, "VMALLE1IS": 1 });
        assert_eq!(*tlbi("in place, TLBI by page"), once, "{work}");
        let range = serde_json::json!({ "RIPAS2E1IS": 1, "VMALLE1IS": 1 });
        for method in ["in place, TLBI by range", "break, batched", "the VM's own choice"] {
            assert_eq!(*tlbi(method), range, "{work}, {method}");
        }
        assert_eq!(*tlbi("in place, TLBI of the VM"), serde_json::json!({ "VMALLS12E1IS": 1 }));
    }
    let picture = std::fs::read_to_string(plot).unwrap();
    let drawn = METHODS.iter().all(|method| picture.contains(&method.name.replace('\'', "&apos;")));
    assert!(picture.starts_with("<svg") && drawn, "{}", &picture[..picture.len().min(2000)]);
}

#[test]
fn without_tlbi_by_range_and_single_instructions_protections_change_in_one_flush_too() {
    let numbers = bench(&["prot", "--quick", "--cpus", "1", "--cpu", "cortex-a53"]);
    let one = setting(&numbers, 1, "4 KiB");
    for work in WORKS {
        let tlbi = |method| &counted(one, (method, work, 512))["tlbi"];
        assert_eq!(*tlbi("in place, TLBI of the VM"), serde_json::json!({ "VMALLS12E1IS": 1 }));
        // As many as the cost model allows.
        let most = serde_json::json!({ "IPAS2E1IS": 512, "VMALLE1IS": 1 });
        for method in ["in place, TLBI by range", "break, batched", "the VM's own choice"] {
            assert_eq!(*tlbi(method), most, "{work}, {method}");
        }
        let many = &counted(one, ("the VM's own choice", work, 4096))["tlbi"];
        assert_eq!(*many, serde_json::json!({ "VMALLS12E1IS": 1 }), "{work}");
    }
}
