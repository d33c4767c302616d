//! The keyboard, on a pseudo terminal: raw while a guest runs, as before when it has ended.

use e2e::images;
use e2e::keyboard::Session;

#[test]
fn keys_reach_the_guest_and_the_terminal_is_restored() {
    let mut session = Session::start(&["run", "wild", "--append", "case=echo", "--vcpus", "1"]);
    assert!(!session.is_raw());
    session.expect("echo");
    assert!(session.is_raw());
    session.press(b"k");
    session.expect("key 'k'");
    session.press(b"q");
    assert_eq!(session.end(), Some(0));
    assert!(!session.is_raw(), "the terminal is left raw");
}

#[test]
fn control_c_ends_a_guest_of_ours() {
    let mut session = Session::start(&["run", "wild", "--append", "case=sleep", "--vcpus", "1"]);
    session.expect("Ctrl-C ends the run");
    session.expect("case=sleep");
    session.press(b"\x03");
    assert_eq!(session.end(), Some(130));
    assert!(!session.is_raw(), "the terminal is left raw");
}

#[test]
fn control_c_goes_to_a_guest_from_elsewhere_and_control_a_x_leaves() {
    let path = images().guest_bin("wild").display().to_string();
    let mut session = Session::start(&["run", &path, "--append", "case=echo", "--vcpus", "1"]);
    session.expect("Ctrl-A x ends the run");
    session.expect("case=echo");
    session.press(b"\x03");
    session.expect("0x03");
    session.press(b"\x01x");
    assert_eq!(session.end(), Some(130));
    assert!(!session.is_raw(), "the terminal is left raw");
}

/// A guest that never writes, at a terminal that is closed.
#[track_caller]
fn hang_up(mut session: Session) -> Option<i32> {
    session.expect("case=sleep");
    session.hang_up()
}

const SILENT: &[&str] = &["run", "wild", "--append", "case=sleep", "--vcpus", "1"];

#[test]
fn a_closed_terminal_ends_everything() {
    assert_eq!(hang_up(Session::start(SILENT)), Some(129));
}

#[test]
fn a_closed_terminal_ends_everything_even_if_only_the_parent_is_told() {
    assert_eq!(hang_up(Session::start_below_a_deaf_leader(SILENT)), Some(141));
}
