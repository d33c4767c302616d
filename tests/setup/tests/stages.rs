//! The stages of `./just test`, and the table at their end.

use std::io::Result;

use setup_tests::{Machine, Outcome};

fn stages(machine: &Machine) -> Result<Outcome> {
    let words = ["python3", "-S", "-m", "bootstrap.stages", "just", "lint", "unit", "guests"];
    Ok(machine.command(&words).output()?.into())
}

#[test]
fn every_stage_has_its_line_and_the_total_is_last() -> Result<()> {
    let outcome = stages(&Machine::equipped()?)?;
    outcome.expect(0, &[]);
    let (_, table) = outcome.stdout.split_once("stage ").unwrap_or_default();
    let rows: Vec<_> = table.lines().skip(1).filter_map(|row| row.split(' ').next()).collect();
    assert_eq!(rows, ["lint", "unit", "guests", "total"], "{}", outcome.stdout);
    assert!(table.contains('%'));
    Ok(())
}

#[test]
fn a_failing_stage_fails_the_whole_and_hides_no_other() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.switch("just-fails", "unit")?;
    let outcome = stages(&machine)?;
    outcome.expect(1, &[]);
    let failed: Vec<_> = outcome.stdout.lines().filter(|row| row.contains("failed")).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].starts_with("unit") && failed[0].ends_with("failed (7)"), "{failed:?}");
    assert_eq!(machine.count("--no-deps guests"), 1);
    Ok(())
}
