//! The switch exists in test programs of the copy, and nowhere else.

use std::path::{Path, PathBuf};
use std::process::Command;

use hypctl::workspace::{Variant, Workspace};
use mutants::{REACHED, SWITCH};

use crate::fixture::Fixture;

fn holds(program: &Path, text: &str) -> bool {
    let bytes = std::fs::read(program).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// What the search must find where the switch is: in a test program of a copy.
fn seeded_program(fixture: &Fixture) -> PathBuf {
    fixture.seed(&[["any", "sum", "sum += at", "sum += 1", "sums", "the sum to three"]]);
    let output = fixture.run(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let deps = std::fs::read_dir(fixture.target().join("debug/deps")).unwrap();
    let program = deps.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("adding-") && path.extension().is_none() && holds(path, SWITCH)
    });
    program.expect("the seeded test program")
}

#[test]
fn the_images_contain_no_switch() {
    let fixture = Fixture::new();
    let seeded = seeded_program(&fixture);
    assert!(holds(&seeded, SWITCH) && holds(&seeded, REACHED), "the search finds a switch");

    let workspace = Workspace::find().unwrap();
    hypctl::build::build(&workspace, Variant::Plain, true).unwrap();
    for image in [workspace.hyp_elf(Variant::Plain), workspace.hyp_bin(Variant::Plain)] {
        assert!(
            holds(&image, "hyp: refused: the image does not run"),
            "{} is the image",
            image.display()
        );
        assert!(!holds(&image, SWITCH), "{} has a switch", image.display());
        assert!(!holds(&image, REACHED), "{} has a switch", image.display());
    }
    // Nor do the sources that they were built from.
    let source = workspace.root().join("stage2/src/lib.rs");
    assert!(!holds(&source, "mod seeded"), "the switch is written into the copy only");
}

/// The copy shares the target directory: cargo must not take one's libraries for the other's.
#[test]
fn the_workspaces_own_programs_contain_no_switch() {
    let fixture = Fixture::new();
    for _ in 0..2 {
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--no-run", "-p", "victim", "--message-format=json"]);
        cargo.current_dir(fixture.root()).env("CARGO_TARGET_DIR", fixture.target());
        let output = cargo.env_remove("RUSTFLAGS").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let messages = String::from_utf8(output.stdout).unwrap();
        let own: Vec<PathBuf> = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
            .collect();
        assert!(own.iter().any(|program| holds(program, "twice three")), "the tests: {own:?}");
        for program in own {
            assert!(!holds(&program, SWITCH), "{} has a switch", program.display());
        }
        // Kills, and so executes, what was seeded, whichever was built last.
        seeded_program(&fixture);
    }
}
