//! Random bytes for every fuzz target: what the saved corpus, chosen by coverage, does not vary.

use programs::{descriptors, device_trees, interrupts, programs as operations, syndromes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// What a guest of ordinary size on a machine of ordinary size looks like to [`device_trees`].
const ORDINARY: &[u8] = include_bytes!("../corpus/device_trees/virt-image-ramdisk");

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn any_syndromes(bytes in vec(any::<u8>(), 0..600)) {
        syndromes::check(&bytes);
    }

    #[test]
    fn any_descriptors(bytes in vec(any::<u8>(), 0..200)) {
        descriptors::check(&bytes);
    }
}

proptest! {
    #![proptest_config(config(400))]

    /// Any edits to any of the real trees.
    #[test]
    fn any_device_trees(seed: u8, edits in vec(any::<u8>(), 0..60)) {
        let mut bytes = ORDINARY.to_vec();
        bytes[0] = seed;
        bytes.extend(edits);
        device_trees::check(&bytes);
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn any_interrupts(bytes in vec(any::<u8>(), 20..600)) {
        interrupts::check(&bytes);
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn any_programs(bytes in vec(any::<u8>(), 20..300)) {
        operations::check(&bytes);
    }
}
