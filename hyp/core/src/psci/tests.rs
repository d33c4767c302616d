//! PSCI against a reference that has no concurrency, and then with some.

use std::string::String;
use std::sync::Barrier;
use std::thread;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const RAM: IpaRange = IpaRange { start: 0x4000_0000, end: 0x4400_0000 };
const ENTRY: u64 = 0x4020_0000;
const ON: u32 = psci::PSCI_CPU_ON_64;
const INFO: u32 = psci::PSCI_AFFINITY_INFO_64;

fn vm(vcpus: usize) -> Psci {
    Psci::new(vcpus, RAM)
}

fn code(action: Action) -> i64 {
    match action {
        Action::Return(value) => value as i64,
        other => panic!("no return but {other:?}"),
    }
}

#[test]
fn versions_are_1_1() {
    assert_eq!(code(vm(1).call(0, psci::PSCI_VERSION, [0; 3])), 0x1_0001);
    assert_eq!(code(vm(1).call(0, SMCCC_VERSION, [0; 3])), 0x1_0001);
}

#[test]
fn features_are_what_is_there() {
    let vm = vm(1);
    let feature = |function: u32| code(vm.call(0, psci::PSCI_FEATURES, [function.into(), 0, 0]));
    let known = [
        psci::PSCI_VERSION,
        psci::PSCI_FEATURES,
        psci::PSCI_CPU_ON_32,
        psci::PSCI_CPU_ON_64,
        psci::PSCI_CPU_OFF,
        psci::PSCI_AFFINITY_INFO_32,
        psci::PSCI_AFFINITY_INFO_64,
        psci::PSCI_CPU_SUSPEND_32,
        psci::PSCI_CPU_SUSPEND_64,
        psci::PSCI_MIGRATE_INFO_TYPE,
        psci::PSCI_SYSTEM_OFF,
        psci::PSCI_SYSTEM_RESET,
        SMCCC_VERSION,
    ];
    for function in known {
        assert_eq!(feature(function), 0, "{function:#x}");
    }
    for function in
        [psci::PSCI_MIGRATE_64, psci::PSCI_SYSTEM_RESET2_64, 0xc400_0002, 0xc600_0001, 0]
    {
        assert_eq!(feature(function), -1, "{function:#x}");
        assert_eq!(code(vm.call(0, function, [0; 3])), -1, "what is not a feature is not a call");
    }
    assert_eq!(code(vm.call(0, SMCCC_ARCH_FEATURES, [SMCCC_VERSION.into(), 0, 0])), 0);
    assert_eq!(code(vm.call(0, SMCCC_ARCH_FEATURES, [ON.into(), 0, 0])), -1);
}

#[test]
fn a_cpu_goes_from_off_over_pending_to_on_and_back() {
    let vm = vm(2);
    let info = || code(vm.call(0, INFO, [1, 0, 0]));
    assert_eq!(info(), 1);
    let start = Action::Start { vcpu: 1, entry: ENTRY, context: 7 };
    assert_eq!(vm.call(0, ON, [1, ENTRY, 7]), start);
    assert_eq!(info(), 2);
    assert_eq!(code(vm.call(0, ON, [1, ENTRY, 7])), -5, "ON_PENDING");
    vm.started(1);
    assert_eq!(info(), 0);
    assert_eq!(code(vm.call(0, ON, [1, ENTRY, 7])), -4, "ALREADY_ON");
    assert_eq!(vm.call(1, psci::PSCI_CPU_OFF, [0; 3]), Action::Off { last: false });
    assert_eq!(info(), 1);
    assert_eq!(vm.call(0, ON, [1, ENTRY, 7]), start, "it can be started again");
}

#[test]
fn the_last_cpu_off_knows_that_it_is() {
    let vm = vm(2);
    let _ = vm.call(0, ON, [1, ENTRY, 0]);
    assert_eq!(vm.call(0, psci::PSCI_CPU_OFF, [0; 3]), Action::Off { last: false }, "1 is pending");
    vm.started(1);
    assert_eq!(vm.call(1, psci::PSCI_CPU_OFF, [0; 3]), Action::Off { last: true });
}

#[test]
fn bad_targets_and_entries_are_refused_and_change_nothing() {
    let vm = vm(2);
    for target in [2, 8, 0x100, 0x1_0000, 1 << 32, 1 << 24, 1 << 31, u64::MAX] {
        assert_eq!(code(vm.call(0, ON, [target, ENTRY, 0])), -2, "{target:#x}");
        assert_eq!(code(vm.call(0, INFO, [target, 0, 0])), -2, "{target:#x}");
    }
    for entry in [0, RAM.start - 4, RAM.end, ENTRY + 1, ENTRY + 2, u64::MAX] {
        assert_eq!(code(vm.call(0, ON, [1, entry, 0])), -9, "{entry:#x}");
    }
    assert_eq!(vm.power(1), Power::Off);
    assert!(matches!(vm.call(0, ON, [1, RAM.end - 4, 0]), Action::Start { .. }));
}

#[test]
fn the_32_bit_forms_use_the_low_halves() {
    let vm = vm(2);
    let high = 0xdead_beef_0000_0000;
    let action = vm.call(0, psci::PSCI_CPU_ON_32, [high | 1, high | ENTRY, high | 9]);
    assert_eq!(action, Action::Start { vcpu: 1, entry: ENTRY, context: 9 });
    assert_eq!(code(vm.call(0, psci::PSCI_AFFINITY_INFO_32, [high | 1, high, 0])), 2);
    assert_eq!(code(vm.call(0, INFO, [high | 1, 0, 0])), -2, "the 64-bit form does not");
}

#[test]
fn higher_affinity_levels_answer_for_the_whole_vm() {
    let vm = vm(2);
    for level in 1..=3 {
        assert_eq!(code(vm.call(0, INFO, [1, level, 0])), 0);
    }
    assert_eq!(code(vm.call(0, INFO, [0x100, 1, 0])), -2, "no such cluster");
    assert_eq!(code(vm.call(0, INFO, [0x100, 2, 0])), 0, "Aff1 is ignored at level 2");
    assert_eq!(code(vm.call(0, INFO, [0, 4, 0])), -2);
    assert_eq!(code(vm.call(0, INFO, [0, u64::MAX, 0])), -2);
}

#[test]
fn the_system_calls_are_passed_on() {
    assert_eq!(vm(1).call(0, psci::PSCI_SYSTEM_OFF, [0; 3]), Action::SystemOff);
    assert_eq!(vm(1).call(0, psci::PSCI_SYSTEM_RESET, [0; 3]), Action::SystemReset);
}

#[test]
fn a_suspended_cpu_waits_and_stays_on() {
    let (vm, standby, down) = (vm(2), 0x0000_1234, 0x0301_1234);
    for function in [psci::PSCI_CPU_SUSPEND_32, psci::PSCI_CPU_SUSPEND_64] {
        assert_eq!(vm.call(0, function, [standby, 0, 0]), Action::Suspend, "no entry is needed");
        assert_eq!(vm.call(0, function, [down, ENTRY, 0]), Action::Suspend);
        assert_eq!(code(vm.call(0, function, [down, RAM.end, 0])), -9);
        assert_eq!(code(vm.call(0, function, [1 << 17, ENTRY, 0])), -2);
        assert_eq!(code(vm.call(0, function, [1 << 26, ENTRY, 0])), -2);
    }
    let high = 0xdead_beef_0000_0000;
    let narrow = vm.call(0, psci::PSCI_CPU_SUSPEND_32, [high | down, high | ENTRY, high]);
    assert_eq!(narrow, Action::Suspend);
    assert_eq!(code(vm.call(0, psci::PSCI_CPU_SUSPEND_64, [high | down, ENTRY, 0])), -2);
    assert_eq!(vm.power(0), Power::On);
}

#[test]
fn there_is_no_trusted_os_to_migrate() {
    assert_eq!(code(vm(1).call(0, psci::PSCI_MIGRATE_INFO_TYPE, [0; 3])), 2);
    assert_eq!(code(vm(1).call(0, psci::PSCI_MIGRATE_64, [0; 3])), -1);
}

#[test]
fn of_racing_cpu_on_calls_exactly_one_wins() {
    for round in 0..200 {
        let vm = vm(8);
        let barrier = Barrier::new(4);
        let calls = thread::scope(|scope| {
            let racers: Vec<_> = (0..4_u64)
                .map(|racer| {
                    let (vm, barrier) = (&vm, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        // Different neighbours in the same word change meanwhile.
                        (1..8)
                            .map(|target| vm.call(0, ON, [target, ENTRY, racer]))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect::<Vec<_>>()
        });
        for target in 1..8 {
            let won =
                |call: &&Action| matches!(call, Action::Start { vcpu, .. } if *vcpu == target);
            assert_eq!(calls.iter().filter(won).count(), 1, "round {round}, target {target}");
            assert_eq!(vm.power(target), Power::OnPending);
        }
        let lost = |call: &&Action| **call == Action::Return((-5_i64) as u64);
        assert_eq!(calls.iter().filter(lost).count(), 3 * 7);
    }
}

#[test]
fn of_racing_cpu_off_calls_exactly_one_is_the_last() {
    for round in 0..200 {
        let vm = vm(4);
        for target in 1..4 {
            let _ = vm.call(0, ON, [target, ENTRY, 0]);
            vm.started(target as usize);
        }
        let barrier = Barrier::new(4);
        let last = thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|vcpu| {
                    let (vm, barrier) = (&vm, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        vm.call(vcpu, psci::PSCI_CPU_OFF, [0; 3])
                    })
                })
                .collect();
            let actions = racers.into_iter().map(|racer| racer.join().unwrap());
            actions.filter(|action| *action == Action::Off { last: true }).count()
        });
        assert_eq!(last, 1, "round {round}");
    }
}

/// What is done to the machine.
#[derive(Clone, Copy, Debug)]
enum Step {
    On(usize, u64, u64),
    Started(usize),
    Off(usize),
    Info(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let entry = prop_oneof![4 => Just(ENTRY), 1 => any::<u64>()];
    prop_oneof![
        (0..4_usize, 0..6_u64, entry).prop_map(|(by, target, entry)| Step::On(by, target, entry)),
        (0..6_usize).prop_map(Step::Started),
        (0..6_usize).prop_map(Step::Off),
        (0..6_u64, 0..5_u64).prop_map(|(target, level)| Step::Info(target, level)),
    ]
}

proptest! {
    #[test]
    fn the_states_follow_a_plain_list(steps in proptest::collection::vec(step(), 0..60)) {
        let vm = vm(4);
        let mut states = [Power::On, Power::Off, Power::Off, Power::Off];
        for step in steps {
            match step {
                Step::On(by, target, entry) => {
                    let action = vm.call(by, ON, [target, entry, 0]);
                    let power = states.get(target as usize).copied();
                    let fits = RAM.contains(entry) && entry % 4 == 0;
                    match power {
                        None => prop_assert_eq!(code(action), -2),
                        Some(_) if !fits => prop_assert_eq!(code(action), -9),
                        Some(Power::On) => prop_assert_eq!(code(action), -4),
                        Some(Power::OnPending) => prop_assert_eq!(code(action), -5),
                        Some(Power::Off) => {
                            let vcpu = target as usize;
                            prop_assert_eq!(action, Action::Start { vcpu, entry, context: 0 });
                            states[vcpu] = Power::OnPending;
                        }
                    }
                }
                Step::Started(vcpu) => {
                    vm.started(vcpu);
                    if states.get(vcpu) == Some(&Power::OnPending) {
                        states[vcpu] = Power::On;
                    }
                }
                Step::Off(vcpu) => {
                    let action = vm.call(vcpu, psci::PSCI_CPU_OFF, [0; 3]);
                    if states.get(vcpu) == Some(&Power::On) {
                        states[vcpu] = Power::Off;
                        let last = states.iter().all(|state| *state == Power::Off);
                        prop_assert_eq!(action, Action::Off { last });
                    } else {
                        prop_assert_eq!(code(action), -3);
                    }
                }
                Step::Info(target, 0) => {
                    let expected = states.get(target as usize).map_or(-2, |state| *state as i64);
                    prop_assert_eq!(code(vm.call(0, INFO, [target, 0, 0])), expected);
                }
                Step::Info(target, level) => {
                    let answer = code(vm.call(0, INFO, [target, level, 0]));
                    prop_assert!((-2..=2).contains(&answer));
                }
            }
            for (vcpu, state) in states.iter().enumerate() {
                prop_assert_eq!(vm.power(vcpu), *state);
            }
        }
    }

    #[test]
    fn any_call_gets_an_answer(vcpus: usize, vcpu: usize, function: u32, args: [u64; 3]) {
        let _: String = std::format!("{:?}", vm(vcpus).call(vcpu, function, args));
    }
}
