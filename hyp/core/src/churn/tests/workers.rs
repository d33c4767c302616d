use super::super::*;

/// Ticks a second.
const SECOND: u64 = 1_000_000;

#[test]
fn cpus_without_a_vcpu_work_if_there_are_any_and_all_if_there_are_none() {
    let who = |cpus, vcpus| {
        let workers = Workers { cpus, vcpus };
        (0..cpus).filter(|cpu| workers.works(*cpu)).collect::<std::vec::Vec<_>>()
    };
    assert_eq!(who(3, 2), [2]);
    assert_eq!(who(4, 2), [2, 3]);
    assert_eq!(who(2, 2), [0, 1]);
    assert_eq!(who(1, 1), [0]);
    // vCPUs that take turns.
    assert_eq!(who(2, 4), [0, 1]);
    let workers = Workers { cpus: 3, vcpus: 2 };
    assert_eq!([0, 1, 2].map(|cpu| workers.has_vcpu(cpu)), [true, true, false]);
}

#[test]
fn cpus_that_have_vcpus_do_less_and_less_at_a_time() {
    let (apart, shared) = (Workers { cpus: 3, vcpus: 2 }, Workers { cpus: 2, vcpus: 2 });
    assert_eq!((apart.most(), shared.most()), (4, 1));
    let due = |workers: Workers| workers.due(7, SECOND);
    assert_eq!((due(apart), due(shared)), (7 + SECOND / 500, 7 + SECOND / 100));
}

#[test]
fn who_finds_another_cpu_at_a_part_looks_again_later() {
    let workers = Workers { cpus: 4, vcpus: 2 };
    assert_eq!(workers.look(10, 9, SECOND), 10);
    assert_eq!(workers.look(10, 10, SECOND), 10);
    assert_eq!(workers.look(10, 11, SECOND), 11 + SECOND / 500);
    assert_eq!(workers.look(NEVER, 11, SECOND), NEVER);
}
