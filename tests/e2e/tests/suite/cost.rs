//! What one populate fault costs, in EL2 instructions, by deterministic counting.

use std::process::Command;
use std::time::Duration;

use e2e::{bounded, host, hypctl};

/// From the vector to the ERET; zeroing and cleaning of the page are not counted.
const AT_MOST: u64 = 300;

#[test]
fn a_populate_fault_stays_below_the_bound_and_two_runs_agree() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("fault.json");
    let mut command = Command::new(hypctl());
    command.args(["bench", "fault", "--quick", "--quiet", "--json"]).arg(&json);
    let _host = host::shared();
    let ended = bounded::run(&mut command, b"", Duration::from_secs(420)).unwrap();
    let code = ended.status.and_then(|status| status.code());
    assert_eq!(code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let text = std::fs::read_to_string(&json).unwrap();
    let numbers: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(numbers["identical"], true, "{text}");
    let (samples, median) = (&numbers["measure"]["samples"], &numbers["measure"]["median"]);
    assert!(samples.as_u64().is_some_and(|samples| samples >= 250), "{text}");
    assert!(median.as_u64().is_some_and(|median| (1..AT_MOST).contains(&median)), "{text}");
}
