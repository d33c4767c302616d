//! Each way in which a test can end, and what is made of it.

use std::process::Output;

use crate::fixture::Fixture;

const KILLED: [&str; 6] = ["killed", "sum", "sum += at", "sum += 1", "sums", "the sum to three"];

/// Nothing is mapped there.
const CRASH: &str = "at += 1 + unsafe { core::ptr::read_volatile(8 as *const u64) };";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The outcome of each mutant, from the JSON report.
fn outcomes(output: &Output) -> Vec<(String, String)> {
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let mutants = report["mutants"].as_array().unwrap().iter();
    let plain = |value: &serde_json::Value| match value.as_str() {
        Some(word) => word.to_owned(),
        None => value.to_string(),
    };
    mutants.map(|mutant| (plain(&mutant["mutant"]), plain(&mutant["outcome"]))).collect()
}

#[test]
fn only_the_stated_failure_is_a_kill() {
    let fixture = Fixture::new();
    fixture.seed(&[
        KILLED,
        ["const-fn", "twice", "n + n", "n + n + 1", "twice", "twice three"],
        ["same-place", "twice", "n + n", "n", "twice", "twice three"],
        ["inside", "twice", "n + n", "n * 2", "twice", "twice three"],
        ["never-executed", "idle", "7", "8", "sums", "the sum to three"],
        [
            "hung",
            "sum",
            "at < n",
            "true || at < n && { at = 0; sum = 0; true }",
            "sums",
            "the sum to three",
        ],
        ["other-text", "sum", "at < n", "at <= n", "sums", "some other text"],
        ["crashed", "sum", "at += 1;", CRASH, "sums", "the sum to three"],
    ]);
    let output = fixture.run(&["--json", "--timeout", "6"]);
    let expected = [
        ("killed", "killed"),
        ("const-fn", "killed"),
        ("same-place", "killed"),
        ("inside", r#"{"survived":{"reached":true}}"#),
        ("never-executed", r#"{"survived":{"reached":false}}"#),
        ("hung", "hung"),
        ("other-text", "failed-elsewhere"),
        ("crashed", "crashed"),
    ];
    let got = outcomes(&output);
    let got: Vec<_> = got.iter().map(|(name, outcome)| (name.as_str(), outcome.as_str())).collect();
    assert_eq!(got, expected, "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "a survivor");

    let table = fixture.run(&["--timeout", "6", "killed", "other"]);
    let words = text(&table.stdout);
    assert!(words.contains("2 mutants: 1 killed, 1 survived"), "{words}");
    assert!(words.contains("SURVIVED, failed elsewhere"), "{words}");
    assert!(words.contains("should say `some other text`; it says"), "{words}");
    assert!(words.contains("the sum to three"), "what the test said instead: {words}");

    let all_killed = fixture.run(&["killed", "const", "same"]);
    assert_eq!(all_killed.status.code(), Some(0), "{all_killed:?}");

    let hunt = fixture.run(&["--hunt", "killed"]);
    let words = text(&hunt.stdout);
    assert!(words.contains("victim/adding: sums fails"), "{words}");
    assert!(words.contains("killed: 2 tests; 1 fail; 0 pass though they execute it"), "{words}");

    let list = fixture.run(&["--list"]);
    assert!(text(&list.stdout).contains("`sum += at` becomes `sum += 1`"), "{list:?}");
}

#[test]
fn a_wrong_registry_is_an_error_and_says_where() {
    let fixture = Fixture::new();
    let error = |mutant: [&str; 6]| {
        fixture.seed(&[mutant]);
        let output = fixture.run(&[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        text(&output.stderr)
    };
    let gone = error(["gone", "sum", "sum += 2", "sum += 1", "sums", "the sum to three"]);
    assert!(
        gone.contains("`gone`: victim/src/lib.rs, function `sum`, fragment `sum += 2`"),
        "{gone}"
    );
    let twice = error(["twice", "twice", "n", "1", "twice", "twice three"]);
    assert!(twice.contains("found 2 times"), "{twice}");
    let broken = error(["broken", "idle", "7", "no_such_name", "sums", "the sum to three"]);
    assert!(broken.contains("no_such_name") && broken.contains("/* broken */"), "{broken}");
}

#[test]
fn a_test_that_fails_without_a_defect_proves_nothing() {
    let fixture = Fixture::new();
    fixture.write("victim/tests/adding.rs", "#[test] fn sums() { assert_eq!(victim::sum(3), 7) }");
    fixture.seed(&[KILLED]);
    let output = fixture.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("without any defect, victim/adding: sums fails"));

    fixture.write("victim/tests/adding.rs", "#[test] fn others() {}");
    let output = fixture.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("sums is not there"), "{}", text(&output.stderr));
}
