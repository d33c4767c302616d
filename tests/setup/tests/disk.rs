//! A disk that is full, or fills up: a small tmpfs under the cache.

use std::io::Result;

use setup_tests::Machine;

const ENSURE: &str = "python3 -S -m bootstrap ensure\n";

#[test]
fn too_small_for_the_toolchain_is_told_before_the_download() -> Result<()> {
    let machine = Machine::equipped()?;
    let outcome = machine.on_small_disk("16m", ENSURE)?;
    outcome.expect(14, &["Room on the disk: 1300 MB for", "MB left", "HYP_CACHE"]);
    let cache = machine.cache("").display().to_string();
    assert!(outcome.stderr.contains(cache.trim_end_matches('/')), "{}", outcome.stderr);
    assert_eq!(machine.count("toolchain install"), 0);
    Ok(())
}

#[test]
fn a_disk_that_fills_up_half_way_leaves_nothing() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.remove("just")?;
    machine.switch("pip-fills", "")?;
    let lines =
        "python3 -S -m bootstrap runner; code=$?; find \"$HYP_CACHE\" -size +100k; exit $code";
    let outcome = machine.on_small_disk("32m", lines)?;
    outcome.expect(14, &["Room on the disk", "the command runner", "Free some space"]);
    assert_eq!(outcome.stdout, "");
    Ok(())
}

#[test]
fn not_even_room_for_the_records() -> Result<()> {
    let machine = Machine::equipped()?;
    let fill = "head -c 10000000 /dev/zero > \"$HYP_CACHE/ballast\" 2>/dev/null\n";
    let outcome = machine.on_small_disk("64k", &format!("{fill}{ENSURE}"))?;
    outcome.expect(14, &["Room on the disk", "0 kB left"]);
    Ok(())
}

#[test]
fn package_lists_that_do_not_fit_are_told() -> Result<()> {
    let machine = Machine::equipped()?;
    machine.remove("qemu-system-aarch64")?;
    machine.apt(&[])?;
    machine.on_small_disk("16m", ENSURE)?.expect(14, &["100 MB for package lists"]);
    Ok(())
}
