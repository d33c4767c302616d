//! The scenarios of the recovery suite: what each does, under which policy, and what has to come of it.
//!
//! A guest of ours judges what it sees itself: values, registers, its own exceptions, the counters of `STAT`. What
//! it cannot see is judged here: how many violations the hypervisor has counted, how the VM ended, and that all of
//! its memory came back.

use hyp_core::report::Report;

use super::logged;

/// How many of something there have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// At the least.
    pub least: u64,
    /// At the most.
    pub most: u64,
}

/// So many or more.
pub const fn at_least(count: u64) -> Count {
    Count { least: count, most: u64::MAX }
}

/// So many, or more up to there.
pub const fn between(least: u64, most: u64) -> Count {
    Count { least, most }
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
    /// The guest asks for a reset that is its last, having been started so often.
    Reset(u32),
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
    /// How it has to end.
    pub end: End,
    /// Violations that there have to be, except on some CPU models.
    violations: Count,
    but: &'static [(&'static str, Count)],
    guest: Guest,
    vcpus: u32,
    options: &'static [&'static str],
    /// Looks at the rest of the report; says what is wrong.
    pub(super) check: fn(&Report) -> Vec<String>,
}

/// Who reaches for what is not there.
#[derive(Clone, Copy, Debug)]
enum Guest {
    /// A case of `wild`.
    Wild(&'static str),
    /// U-Boot, told to do so at its prompt.
    UBoot,
}

/// What U-Boot is typed: a file of the checkout.
pub(super) const SCRIPT: &str = "hypctl/src/recover/u-boot.script";

/// The window of most scenarios: 16 MiB behind the guest's RAM.
macro_rules! window {
    ($policy:literal) => {
        concat!($policy, "@0x44000000+16M")
    };
}

/// A case of the guest `wild`, which is content with what it sees.
const fn wild(name: &'static str, policy: &'static str, about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        policy,
        end: End::Passes,
        violations: exactly(0),
        but: &[],
        guest: Guest::Wild(name),
        vcpus: 1,
        options: &[],
        check: |_| Vec::new(),
    }
}

/// One with the scratch page throughout the window.
const fn scratch(name: &'static str, about: &'static str) -> Scenario {
    wild(name, "scratch", about).options(&["--recover", window!("scratch")])
}

/// One with aborts throughout the window.
const fn inject(name: &'static str, about: &'static str) -> Scenario {
    wild(name, "inject", about).options(&["--recover", window!("inject")])
}

/// One that is stopped, and says so in these words.
const fn stop(
    name: &'static str,
    case: &'static str,
    about: &'static str,
    words: &'static [&'static str],
) -> Scenario {
    wild(name, "stop", about).case(case).violations(exactly(1)).ends(End::Stopped(words))
}

impl Scenario {
    /// So many violations.
    const fn violations(mut self, count: Count) -> Self {
        self.violations = count;
        self
    }

    /// So many vCPUs.
    const fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// An end that is not a pass.
    const fn ends(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// With another case of the guest.
    const fn case(mut self, case: &'static str) -> Self {
        self.guest = Guest::Wild(case);
        self
    }

    /// The report has to pass this, too.
    const fn check(mut self, check: fn(&Report) -> Vec<String>) -> Self {
        self.check = check;
        self
    }

    /// U-Boot, which is typed what [`SCRIPT`] says.
    const fn uboot(mut self) -> Self {
        self.guest = Guest::UBoot;
        self
    }

    /// Other numbers on these models.
    const fn but(mut self, but: &'static [(&'static str, Count)]) -> Self {
        self.but = but;
        self
    }

    /// More arguments of `hypctl run`.
    const fn options(mut self, options: &'static [&'static str]) -> Self {
        self.options = options;
        self
    }

    /// Violations that there have to be on a CPU model.
    pub fn expected(&self, cpu: &str) -> Count {
        self.but
            .iter()
            .find(|(model, _)| *model == cpu)
            .map_or(self.violations, |(_, count)| *count)
    }

    /// The arguments of `hypctl` that run it, the command first.
    pub fn words(&self, cpu: &str) -> Vec<String> {
        let vcpus = self.vcpus.to_string();
        let (guest, memory, typed) = match self.guest {
            Guest::Wild(case) => ("wild", "64M", ["--append".to_owned(), format!("case={case}")]),
            Guest::UBoot => ("u-boot", "128M", ["--script", SCRIPT].map(str::to_owned)),
        };
        let rest = ["--vcpus", &vcpus, "--guest-mem", memory, "--timeout", "120"];
        let words = ["run", guest, "--selftest", "--cpu", cpu].into_iter().chain(rest);
        let words = words.chain(self.options.iter().copied()).map(str::to_owned);
        words.chain(typed).collect()
    }
}

/// All of them, in the order of the table.
#[rustfmt::skip]
pub static SCENARIOS: &[Scenario] = &[
    stop("stop-read", "read", "loads from an address where nothing is",
        &["read of 8 bytes", "translation fault", "nothing is mapped here"]),
    stop("stop-write", "write", "stores to an address where nothing is",
        &["write of 8 bytes", "translation fault", "nothing is mapped here"]),
    stop("stop-exec", "exec", "jumps to an address where nothing is",
        &["instruction abort", "translation fault"]),
    stop("stop-walk", "s1ptw", "has a stage-1 table at an address where nothing is",
        &["stage-1 table walk", "translation fault"]),
    scratch("hole-read", "loads of 1 to 8 bytes").violations(exactly(5)),
    scratch("hole-write", "stores of 1 to 8 bytes").violations(exactly(4)),
    scratch("hole-pair", "pairs, and bases that are written back").violations(exactly(4)),
    scratch("hole-simd", "SIMD registers, one to four").violations(exactly(4)),
    scratch("hole-exclusive", "exclusives, acquire and release").violations(exactly(3)),
    scratch("hole-lse", "LSE atomics, where there are any").violations(exactly(4))
        .but(&[("cortex-a53", exactly(0))]),
    scratch("hole-zva", "DC ZVA").violations(exactly(1)),
    scratch("hole-maintenance", "cache maintenance by address").violations(exactly(5)),
    scratch("hole-el0", "loads and stores at EL0").violations(exactly(2)),
    scratch("hole-pages", "one access to two pages").violations(exactly(6)),
    scratch("hole-ram", "one access to RAM and the window").violations(exactly(1)),
    scratch("hole-walk", "stage-1 tables, of two levels").violations(exactly(2)),
    scratch("hole-code", "fetches, which are aborts").violations(exactly(6)),
    wild("hole-beyond", "scratch", "addresses beyond the VM's, which are aborts").violations(exactly(2))
        .options(&["--recover", "scratch"]),
    wild("hole-declared", "all", "windows that the guest declares and takes back, in RAM and outside")
        .violations(exactly(33)),
    wild("hole-undeclared", "scratch", "addresses that nothing was said about")
        .options(&["--recover", "scratch"]).violations(exactly(4)),
    wild("hole-policies", "all", "three policies at once")
        .options(&["--recover", concat!("inject,", window!("scratch"), ",stop@0x50000000+1M")])
        .violations(exactly(4)).ends(End::Stopped(&["read of 8 bytes", "0x0000000050000040"])),
    scratch("hole-crowd", "4 vCPUs at the same page at the same moment, 64 times").vcpus(4)
        .violations(between(64, 256)),
    wild("hole-populate", "scratch", "POPULATE where 3 vCPUs use scratch, 6 times 256 pages").vcpus(4)
        .violations(exactly(6 * 192)),
    scratch("hole-release", "RELEASE of scratch that 3 vCPUs use").vcpus(4)
        .violations(at_least(20 * 256)),
    wild("hole-protect", "scratch", "PROTECT, the dirty log and AGE around holes that 3 vCPUs use").vcpus(4)
        .violations(between(128, 3 * 128)),
    wild("hole-sizes", "scratch", "COLLAPSE, COPY, SPLIT, runs and MOVE around holes that 3 vCPUs use").vcpus(4)
        .options(&["--blocks"]).violations(at_least(48)),
    wild("hole-shadow", "scratch", "a shadow of memory, of which a quarter is holes").violations(exactly(64 + 8)),
    wild("hole-tables", "scratch", "more holes than scratch may have tables for, four times, also by EL2's faults")
        .options(&["--recover", "scratch,scratch@0x400000000+1M"]).violations(exactly(9065)),
    scratch("hole-storm", "100 000 violations, while 3 vCPUs work").vcpus(4)
        .options(&["--recover", window!("scratch"), "--recover-limit", "100000", "--recover-rate", "4000000000"])
        .violations(exactly(100_000)),
    scratch("hole-limit", "violations without end, of which 5000 are allowed").case("hole-endless")
        .options(&["--recover", window!("scratch"), "--recover-limit", "5000", "--recover-rate", "4000000000"])
        .violations(exactly(5001)).ends(End::Stopped(&["5000 violations", "recover-limit"])),
    scratch("hole-rate", "violations without end, of which 100 a second are allowed").case("hole-endless")
        .options(&["--recover", window!("scratch"), "--recover-limit", "1000000", "--recover-rate", "100"])
        .violations(between(101, 100_000)).ends(End::Stopped(&["100 violations", "recover-rate"])),
    scratch("hole-secret", "a secret on the scratch page, and a new life, twice").violations(exactly(6))
        .options(&["--recover", window!("scratch"), "--restarts", "2"]).ends(End::Reset(3)),
    scratch("hole-logged", "accesses of which every record is known").violations(exactly(8))
        .check(logged::check),
    wild("u-boot", "scratch", "Debian's U-Boot, told to write where nothing is, and to read").violations(exactly(2))
        .options(&["--recover", "scratch"])
        .uboot(),
    scratch("el2-held", "EL2 reaches for RAM and holes, with each lock held").violations(exactly(13 * 3)),
    scratch("el2-others", "EL2 reaches for RAM and holes, with each lock held by another CPU").vcpus(2)
        .violations(exactly(12)),
    scratch("el2-same", "EL2 and the guest reach the same page, moved and released").violations(exactly(0)),
    scratch("el2-taken", "EL2 reaches for RAM that is moved and released, on 3 vCPUs").vcpus(4)
        .violations(exactly(0)),
    scratch("el2-buffers", "calls that answer in a hole").violations(exactly(2)),
    wild("el2-outside", "all", "calls that answer where EL2 has no way").violations(exactly(2))
        .options(&["--recover", "scratch,scratch@0x400000000+1M"]),
    inject("el2-refused", "EL2 reaches for what is an abort").violations(exactly(0)),
    inject("inject-again", "the same load a thousand times").violations(exactly(1000)),
    inject("inject-el1", "loads, stores and fetches at EL1").violations(exactly(3)),
    inject("inject-el0", "loads, stores and fetches at EL0").violations(exactly(3)),
    inject("inject-other", "a pair, a SIMD register, an exclusive, DC ZVA").violations(exactly(4)),
    inject("inject-walk", "stage-1 tables, of two levels").violations(exactly(2)),
];
