//! The scenarios of the recovery suite: what each does, under which policy, and what has to come of it.
//!
//! A guest of ours judges what it sees itself: values, registers, its own exceptions, the counters of `STAT`. What
//! it cannot see is judged here: how many violations the hypervisor has counted, how the VM ended, and that all of
//! its memory came back.

/// How many of something there have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// At the least.
    pub least: u64,
    /// At the most.
    pub most: u64,
}

/// Exactly so many.
pub const fn exactly(count: u64) -> Count {
    Count { least: count, most: count }
}

impl Count {
    /// Whether this many do.
    pub const fn holds(self, count: u64) -> bool {
        self.least <= count && count <= self.most
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self { least, most } if least == most => write!(f, "{least}"),
            Self { least, most: u64::MAX } => write!(f, "{least} or more"),
            Self { least, most } => write!(f, "{least} to {most}"),
        }
    }
}

/// How a run has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest goes on, and is content with what it has seen.
    Passes,
    /// The VM is stopped, and the diagnosis has these words.
    Stopped(&'static [&'static str]),
}

/// One scenario.
#[derive(Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// The policy of the addresses that it reaches for.
    pub policy: &'static str,
    /// Violations that there have to be.
    pub violations: Count,
    /// How it has to end.
    pub end: End,
    case: &'static str,
    vcpus: u32,
}

/// A case of the guest `wild`, by name, which reaches where nothing is declared. It is stopped.
const fn wild(name: &'static str, case: &'static str, about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        policy: "none",
        violations: exactly(1),
        end: End::Stopped(&[]),
        case,
        vcpus: 1,
    }
}

impl Scenario {
    /// The VM is stopped, and says so in these words.
    const fn stops(mut self, words: &'static [&'static str]) -> Self {
        self.end = End::Stopped(words);
        self
    }

    /// The arguments of `hypctl` that run it, the command first.
    pub fn words(&self, cpu: &str) -> Vec<String> {
        let mut words: Vec<_> =
            ["run", "wild", "--selftest", "--cpu", cpu].map(str::to_owned).into();
        let vcpus = self.vcpus.to_string();
        let case = format!("case={}", self.case);
        let rest = ["--vcpus", &vcpus, "--guest-mem", "64M", "--append", &case, "--timeout", "120"];
        words.extend(rest.map(str::to_owned));
        words
    }
}

/// All of them, in the order of the table.
#[rustfmt::skip]
pub static SCENARIOS: &[Scenario] = &[
    wild("stop-read", "read", "loads from an address where nothing is")
        .stops(&["read of 8 bytes", "translation fault", "nothing is mapped here"]),
    wild("stop-write", "write", "stores to an address where nothing is")
        .stops(&["write of 8 bytes", "translation fault", "nothing is mapped here"]),
    wild("stop-exec", "exec", "jumps to an address where nothing is")
        .stops(&["instruction abort", "translation fault"]),
    wild("stop-walk", "s1ptw", "has a stage-1 table at an address where nothing is")
        .stops(&["stage-1 table walk", "translation fault"]),
];
