//! The machine code of the release image keeps the protocol's promises.

use e2e::disassembly::Program;
use e2e::images;
use hypctl::workspace::Variant;

/// The strict-empty install; never inlined, so that it can be read here.
const INSTALL: &str = "Slot::try_set";

fn program() -> Program {
    Program::read(&images().hyp_elf(Variant::Plain))
}

#[test]
fn try_set_is_a_load_exclusive_store_exclusive_loop() {
    for function in program().functions(INSTALL) {
        function.is_exclusive_loop();
    }
}

#[test]
fn try_set_calls_nothing() {
    for function in program().functions(INSTALL) {
        function.calls_nothing();
    }
}

#[test]
fn no_helper_chooses_the_atomics_at_run_time() {
    let symbols = program().symbols();
    assert!(symbols.len() > 100, "only {} symbols: stripped?", symbols.len());
    let helpers = ["__aarch64_cas", "__aarch64_swp", "__aarch64_ld", "__sync_", "__atomic_"];
    let found: Vec<_> = symbols
        .iter()
        .filter(|name| helpers.iter().any(|helper| name.starts_with(helper)))
        .collect();
    assert!(found.is_empty(), "outline atomics in the image: {found:?}");
}

/// ISB, DSB NSH, and writes of registers: the encodings of C6.2.
const ISB: u32 = 0xd503_3fdf;
const DSB_NSH: u32 = 0xd503_379f;
const TCR_EL1: u32 = 0xd518_2040;
const SCTLR_EL1: u32 = 0xd518_1000;
const HCR_EL2: u32 = 0xd51c_1100;

// Between the two writes there must not be a moment with stage 1 on and walks enabled that the guest does not have.
#[test]
fn walks_are_held_before_stage_1_is_on_and_released_after_it_is_off_again() {
    for hold in program().functions("Aarch64::hold_walks") {
        assert_eq!(hold.system(), [TCR_EL1, ISB, SCTLR_EL1, ISB], "{hold}");
    }
    for release in program().functions("Aarch64::release_walks") {
        assert_eq!(release.system(), [SCTLR_EL1, ISB, TCR_EL1, ISB], "{release}");
    }
}

#[test]
fn the_guests_controls_are_written_between_barriers_and_in_one_place() {
    let mut writers = 0;
    for function in program().functions("control") {
        let system = function.system();
        if system.contains(&HCR_EL2) {
            writers += 1;
            assert_eq!(system, [DSB_NSH, HCR_EL2, ISB], "{function}");
        }
    }
    assert_eq!(writers, 1, "functions of `control` that write HCR_EL2");
}
