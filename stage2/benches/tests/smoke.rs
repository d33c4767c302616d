//! The bench runs: every contender does its work, which it checks itself, and the figures are JSON. No limit
//! is judged: a test's machine is busy, and its build slow.

use std::process::Command;

use serde_json::Value;

/// Pages of the smallest run: 4 MiB.
const PAGES: u64 = 1024;

#[test]
fn every_contender_does_its_work_and_the_figures_are_json() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-host"));
    let ended =
        command.args(["--mib", "4", "--rounds", "2", "--json"]).arg(&json).output().unwrap();
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{text}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(!text.contains("EXCEEDED") && text.contains("not judged"), "{text}");

    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&report["pages"], &report["rounds"]), (&PAGES.into(), &2.into()));
    let works = report["works"].as_array().unwrap();
    let contenders = |work: &Value| work["contenders"].as_array().unwrap().clone();
    let count: Vec<usize> = works.iter().map(|work| contenders(work).len()).collect();
    assert_eq!(count, [6, 4, 4, 6, 3, 2, 2], "works and who does them");
    for contender in works.iter().flat_map(contenders) {
        let name = contender["name"].as_str().unwrap();
        let rounds = contender["rounds_ns_per_page"].as_array().unwrap();
        assert_eq!(rounds.len(), 2, "{name}");
        assert!(rounds.iter().all(|nanos| nanos.as_f64().unwrap() > 0.0), "{name} took no time");
        let spread = &contender["ratio_to_first"];
        let [low, median, high] = ["q1", "median", "q3"].map(|at| spread[at].as_f64().unwrap());
        assert!(low <= median && median <= high, "{name}: {spread}");
        assert!(text.contains(name), "{text}");
    }
    let limits = works.iter().flat_map(|work| work["limits"].as_array().unwrap());
    assert!(limits.clone().count() == 9 && limits.clone().all(|limit| limit["holds"].is_null()));
}
