//! Many interleavings of the larger cases.

#![cfg(all(shuttle, not(loom)))]

use protocol_models::check::Model;
use protocol_models::protocol::{clear, epoch, install, retire};

/// A test for each case: name, executions with each scheduler, outcomes, the case.
macro_rules! models {
    ($($test:ident: $executions:expr, $outcomes:expr, $case:expr;)*) => {$(
        #[test]
        fn $test() {
            let (executions, outcomes) = ($executions, &$outcomes);
            Model { name: stringify!($test), executions, outcomes }.check($case);
        }
    )*};
}

models! {
    a_crowd_installs: 2000,
        ["tables were lost", "frames were lost", "guest read"],
        install::a_crowd;
    pages_come_and_go: 2000,
        ["installed", "was present", "met Drain", "guest read", "cleared"],
        clear::churn;
    maps_come_and_go: 2000,
        ["read the old", "read the new"],
        epoch::a_crowd;
    a_table_is_retired: 1000,
        ["after", "before", "before, then met Dead or Drain", "met Dead or Drain"],
        retire::against_install;
}
