//! The saved corpus: every input that ever reached something new, or found something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use programs::TARGETS;
use programs::device_trees::{Reached, SEEDS, reach};

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: &str) {
    let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let files = inputs(target);
    assert!(files.len() >= 20, "the corpus of {target} is gone");
    for file in files {
        // Shown when a check panics.
        println!("{}", file.display());
        check(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn programs() {
    replay("programs");
}

#[test]
fn descriptors() {
    replay("descriptors");
}

#[test]
fn device_trees() {
    replay("device_trees");
}

#[test]
fn syndromes() {
    replay("syndromes");
}

#[test]
fn interrupts() {
    replay("interrupts");
}

/// Each target is replayed above, and has its wrapper.
#[test]
fn every_target_has_a_corpus_and_a_wrapper() {
    for (target, _) in TARGETS {
        assert!(!inputs(target).is_empty());
        let manifest = include_str!("../fuzz/Cargo.toml");
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
    }
}

/// Every stage from a refusal to a guest's own tree is reached, so that every check is.
#[test]
fn the_device_trees_reach_every_stage() {
    let mut reached = BTreeMap::new();
    for file in inputs("device_trees") {
        *reached.entry(reach(&std::fs::read(file).unwrap())).or_insert(0) += 1;
    }
    use Reached::{Guest, Layout, Machine, Refused};
    for stage in [Refused, Machine, Layout, Guest] {
        assert!(reached.contains_key(&stage), "{stage:?} is not reached: {reached:?}");
    }
}

/// With ordinary choices each real tree that says how PSCI is called becomes a guest.
#[test]
fn every_real_tree_becomes_a_guest() {
    let mut named = 0;
    for file in inputs("device_trees") {
        let name = file.file_name().unwrap().to_str().unwrap();
        if let Some((tree, _)) = name.split_once('-') {
            let without_psci = ["versal", "secure"].contains(&tree);
            let expected = if without_psci { Reached::Refused } else { Reached::Guest };
            assert_eq!(reach(&std::fs::read(&file).unwrap()), expected, "{name}");
            named += 1;
        }
    }
    assert_eq!(named, 4 * SEEDS.len());
}
