//! A timer's registers and its output.

use proptest::prelude::*;

use super::*;

#[test]
fn a_timer_after_reset_is_off() {
    let timer = Timer::default();
    assert_eq!(timer.due(), None);
    assert!(!timer.output(u64::MAX));
    assert_eq!(timer.read(Register::Control, u64::MAX), 0);
}

#[test]
fn the_output_is_high_from_the_compare_value_on_until_it_is_masked_moved_or_switched_off() {
    let mut timer = Timer::default();
    timer.write(Register::Compare, 100, 0);
    timer.write(Register::Control, ENABLE, 0);
    assert_eq!((timer.output(99), timer.output(100), timer.output(1000)), (false, true, true));
    assert_eq!(timer.due(), Some(100));
    assert_eq!(timer.read(Register::Control, 99), ENABLE);
    assert_eq!(timer.read(Register::Control, 100), ENABLE | ISTATUS);
    timer.write(Register::Control, ENABLE | IMASK, 0);
    assert_eq!((timer.output(100), timer.due()), (false, None));
    assert_eq!(timer.read(Register::Control, 100), ENABLE | IMASK | ISTATUS);
    timer.write(Register::Control, ENABLE, 0);
    timer.write(Register::Compare, 101, 0);
    assert!(!timer.output(100));
    timer.write(Register::Control, 0, 0);
    assert!(!timer.output(u64::MAX));
}

#[test]
fn a_value_is_a_signed_distance_from_now() {
    let mut timer = Timer::default();
    timer.write(Register::Value, 0xdead_beef_0000_0010, 1000);
    assert_eq!(timer.compare(), 1016);
    assert_eq!(timer.read(Register::Value, 1015), 1);
    assert_eq!(timer.read(Register::Value, 1017), 0xffff_ffff);
    timer.write(Register::Value, 0xffff_fff0, 1000);
    assert_eq!(timer.compare(), 984);
    timer.write(Register::Value, 0x8000_0000, 0);
    assert_eq!(timer.compare(), 0_u64.wrapping_sub(1 << 31));
}

#[test]
fn registers_have_the_encodings_of_the_manual() {
    let of = |op2| Register::of_physical((3, 3, 14, 2, op2));
    let all = [Some(Register::Value), Some(Register::Control), Some(Register::Compare), None];
    assert_eq!([of(0), of(1), of(2), of(3)], all);
    // The virtual timer's.
    assert_eq!(Register::of_physical((3, 3, 14, 3, 1)), None);
}

proptest! {
    #[test]
    fn what_is_saved_comes_back(control: u64, compare: u64, now: u64) {
        let mut timer = Timer::default();
        timer.write(Register::Compare, compare, now);
        timer.write(Register::Control, control, now);
        let read = timer.read(Register::Control, now);
        prop_assert_eq!(Timer::from_registers(read, timer.compare()), timer);
        prop_assert_eq!(timer.output(now), read & 7 == ENABLE | ISTATUS);
        prop_assert_eq!(timer.output(now), timer.due().is_some_and(|due| due <= now));
    }

    #[test]
    fn a_value_reads_as_it_was_written(value: u32, now: u64) {
        let mut timer = Timer::default();
        timer.write(Register::Value, u64::from(value), now);
        prop_assert_eq!(timer.read(Register::Value, now), u64::from(value));
    }
}
