//! Random programs on the interrupt controller, shrinking.

use programs::interrupts::{Op, Register, Setup, run};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn register() -> impl Strategy<Value = Register> {
    (0u8..10, 0u8..5, 0u8..32).prop_map(|(kind, bank, nth)| Register { kind, bank, nth })
}

/// Mostly few interrupts, so that operations meet.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0u32..32).prop_map(|bit| 1 << bit),
        2 => (0u32..4).prop_map(|bit| 3 << bit | 1 << 27),
        1 => any::<u32>(),
        1 => Just(u32::MAX),
        1 => Just(0x2000_8000),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || 0u8..3;
    let intid = prop_oneof![3 => 32u8..38, 2 => 64u8..66, 1 => Just(30u8), 1 => 0u8..128];
    prop_oneof![
        8 => (vcpu(), register(), value())
            .prop_map(|(vcpu, register, value)| Op::Write { vcpu, register, value }),
        4 => (vcpu(), register()).prop_map(|(vcpu, register)| Op::Read { vcpu, register }),
        2 => (vcpu(), any::<bool>(), any::<u32>(), any::<u8>(), any::<bool>(), any::<u64>()).prop_map(
            |(vcpu, redistributor, offset, size, write, value)| {
                Op::Anything { vcpu, redistributor, offset, size, write, value }
            }
        ),
        6 => (vcpu(), 0u8..8, 0u8..8, any::<bool>())
            .prop_map(|(vcpu, intid, targets, others)| Op::Sgi { vcpu, intid, targets, others }),
        1 => (vcpu(), any::<u8>(), any::<u64>())
            .prop_map(|(vcpu, register, value)| Op::AnySgi { vcpu, register, value }),
        8 => (vcpu(), intid, any::<bool>())
            .prop_map(|(vcpu, intid, level)| Op::Line { vcpu, intid, level }),
        5 => (vcpu(), any::<bool>()).prop_map(|(vcpu, level)| Op::Timer { vcpu, level }),
        12 => (vcpu(), prop::bool::weighted(0.2))
            .prop_map(|(vcpu, group0)| Op::Acknowledge { vcpu, group0 }),
        8 => vcpu().prop_map(|vcpu| Op::End { vcpu }),
        3 => (vcpu(), 0u8..100).prop_map(|(vcpu, intid)| Op::Deactivate { vcpu, intid }),
        3 => (vcpu(), any::<u8>(), any::<u8>(), any::<[u8; 2]>(), any::<u8>()).prop_map(
            |(vcpu, groups, mask, bpr, split)| Op::Interface { vcpu, groups, mask, bpr, split }
        ),
        6 => vcpu().prop_map(|vcpu| Op::Kick { vcpu }),
        3 => (vcpu(), any::<bool>()).prop_map(|(vcpu, load)| Op::Switch { vcpu, load }),
        2 => vcpu().prop_map(|vcpu| Op::Exit { vcpu }),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    (0u8..3, 0u8..5, any::<bool>(), prop::bool::weighted(0.9)).prop_map(
        |(vcpus, list_registers, prompt, open)| Setup { vcpus, list_registers, prompt, open },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_programs_of_interrupts(setup in setup(), ops in vec(op(), 0..120)) {
        run(setup, &ops);
    }
}
