//! `hypctl churn`: a guest that verifies its memory, under a manager that never lets it rest.
//!
//! | guest | what it does meanwhile |
//! | --- | --- |
//! | `linux`, `linux-6.12`, `linux-6.1` | a worker on each CPU copies files on a tmpfs and verifies their checksums (`churn/workload.sh`) |
//! | `churn` | our own: verifies every word of its data, its code and its stage-1 tables (`by=manager`) |
//!
//! It is a `hypctl linux` or `hypctl run` with the option `--churn`, on one CPU more than the guest has, and judged more sharply:
//! each kind of step has to have changed as much as [`least`] says, or it proves little; and each dirty session that was begun has to have been
//! compared to its end.

use std::io::{self, Write};

use clap::Args;
use hyp_core::churn::{Effect, Kind, Wanted, Workers};
use hyp_core::report::Report;

use crate::cli::shared::{CommonArgs, HypArgs, defaults};
use crate::cli::{RunArgs, size};
use crate::exit::Exit;
use crate::linux::cli::LinuxArgs;
use crate::run::{conclude, say, unattended};
use crate::{catalogue, linux};

/// What a Linux guest does.
const WORKLOAD: &str = include_str!("churn/workload.sh");
/// Our own guest.
const OURS: &str = "churn";
/// The time that [`LEAST`] is for, in seconds.
const MINUTE: u64 = 60;

/// What a minute has to change at the least, by kind: a quarter, or less, of what it did on two cores with a load of 10 to 14, and of sessions,
/// which are begun and compared as a whole, half of what ten minutes had (`docs/src/churn.md`). Of harvests these are steps: comparisons
/// harvest, too, and their pages are counted with the others.
const LEAST: [(Kind, u64); Kind::ALL.len()] = [
    (Kind::WriteProtect, 2000),
    (Kind::Harvest, 10),
    (Kind::Age, 2000),
    (Kind::Split, 20),
    (Kind::Collapse, 4),
    (Kind::Copy, 20),
    (Kind::Move, 1000),
    (Kind::Run, 20),
    (Kind::Dissolve, 4),
    (Kind::Session, 1),
    (Kind::Compare, 1),
];

/// By how much less has to be changed where each CPU has a vCPU: the manager does a fifth of the parts there, and a smaller step in each.
/// Sessions take the same time everywhere.
const SHARED: u64 = 5;

/// Examples below `--help`.
pub const EXAMPLES: &str = "\
Exit codes: as of `run`; a wrong checksum, a kernel that complains, too little of a kind of step, or a session that was
not compared to its end is 1; a page that differs from the manager's copy stops the guest, which is 3.

Examples:
  hypctl churn                                  Debian's Linux 6.12 on two vCPUs, for a minute
  hypctl churn linux-6.1 --cpu cortex-a53 --seconds 300 --seed 7
  hypctl churn churn --vcpus 4                  a guest of ours";

/// `hypctl churn`.
#[derive(Args, Clone, Debug)]
pub struct ChurnArgs {
    /// `linux` (6.12), `linux-6.12`, `linux-6.1`, or `churn`, which is a guest of ours
    #[arg(value_name = "GUEST", default_value = "linux",
        value_parser = ["linux", "linux-6.12", "linux-6.1", OURS])]
    pub guest: String,
    /// For how long, from the guest's start on
    #[arg(long, value_name = "N", default_value_t = MINUTE as u32, value_parser = clap::value_parser!(u32).range(1..=hyp_core::churn::MAX_SECONDS as i64))]
    pub seconds: u32,
    /// Another number, other steps
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Virtual CPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=hyp_abi::MAX_VCPUS as i64))]
    pub vcpus: u32,
    /// CPUs of the machine [default: one more than --vcpus, which has the manager to itself]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub smp: Option<u32>,
    /// RAM of the guest: a number and K, M or G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub mem: u64,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What so many seconds have to change at the least, by these CPUs.
#[must_use]
pub fn least(seconds: u32, workers: Workers) -> [(Kind, u64); Kind::ALL.len()] {
    LEAST.map(|(kind, minute)| {
        let share = match kind {
            Kind::Session | Kind::Compare => 1,
            _ if workers.is_shared() => SHARED,
            _ => 1,
        };
        (kind, (minute * u64::from(seconds) / MINUTE / share).max(1))
    })
}

/// Runs `hypctl churn`.
pub fn churn(arguments: &ChurnArgs) -> Exit {
    let mut stdout = io::stdout();
    let played = if arguments.guest == OURS {
        Ok(unattended(&ours(arguments), &mut stdout))
    } else {
        linux::play(&with_linux(arguments), &mut stdout)
    };
    let mut summary = match played {
        Ok(summary) => summary,
        Err(error) => {
            say(&error.to_string());
            return Exit::USAGE;
        }
    };
    let report = summary.report.clone().map(serde_json::from_value::<Report>);
    let least = least(arguments.seconds, arguments.workers());
    let none = || vec!["there is no report".to_owned()];
    let missing = report.and_then(Result::ok).map_or_else(none, |report| missing(&report, least));
    if summary.exit_code == 0 && !missing.is_empty() {
        summary.exit_code = Exit::VERDICT.code();
        summary.message = Some(format!("too little was done: {}", missing.join(", ")));
    }
    let _ = stdout.flush();
    conclude(summary, arguments.common.json.as_deref())
}

/// What was not done that has to be, in words: kinds of which there was too little, and comparisons that never came about.
fn missing(report: &Report, least: [(Kind, u64); Kind::ALL.len()]) -> Vec<String> {
    let effect = |kind| report.stats.churn.get(&kind).copied().unwrap_or_default();
    let (begun, compared) = (effect(Kind::Session).changed, effect(Kind::Compare).steps);
    let unproved = (begun > compared)
        .then(|| format!("{compared} of {begun} sessions were compared to their end"));
    let too_little = |(kind, least): (Kind, u64)| {
        let Effect { steps, changed, .. } = effect(kind);
        let (found, unit) = match kind {
            Kind::Compare => (steps, "session"),
            Kind::Harvest => (steps, "step"),
            _ => (changed, kind.unit()),
        };
        let name = kind.name();
        (found < least).then(|| format!("{name} {found} {unit}s of at least {least}"))
    };
    least.into_iter().filter_map(too_little).chain(unproved).collect()
}

impl ChurnArgs {
    fn smp(&self) -> u32 {
        self.smp.unwrap_or(self.vcpus + 1)
    }

    fn workers(&self) -> Workers {
        Workers { cpus: self.smp() as usize, vcpus: self.vcpus as usize }
    }

    fn wanted(&self) -> Wanted {
        Wanted { seconds: self.seconds, seed: self.seed, session: None }
    }
}

fn ours(churn: &ChurnArgs) -> RunArgs {
    let defaults = defaults::<RunArgs>();
    RunArgs {
        guest: OURS.to_owned(),
        append: Some(format!("by=manager seconds={}", churn.seconds)),
        smp: Some(churn.smp()),
        vcpus: Some(churn.vcpus),
        guest_mem: Some(churn.mem),
        hyp: HypArgs { churn: Some(churn.wanted()), ..defaults.hyp },
        // The verdict is written when it is known.
        common: CommonArgs { json: None, ..churn.common.clone() },
        ..defaults
    }
}

fn with_linux(churn: &ChurnArgs) -> LinuxArgs {
    let kernel = catalogue::kernel(&churn.guest).unwrap_or(&churn.guest);
    let defaults = defaults::<LinuxArgs>();
    LinuxArgs {
        kernel: kernel.strip_prefix("linux-").unwrap_or(kernel).to_owned(),
        script: Some(format!("seconds={}\n{WORKLOAD}", churn.seconds)),
        vcpus: churn.vcpus,
        smp: Some(churn.smp()),
        mem: churn.mem,
        hyp: HypArgs { churn: Some(churn.wanted()), ..defaults.hyp },
        common: CommonArgs { json: None, ..churn.common.clone() },
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hyp_core::report::Outcome;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(words: &[&str]) -> ChurnArgs {
        let line = ["hypctl", "churn"].iter().chain(words);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Churn(churn) => *churn,
            other => panic!("{other:?}"),
        }
    }

    /// A report in which each kind changed so much.
    fn report(effect: impl Fn(Kind) -> Effect) -> Report {
        let mut report = Report::new(Outcome::PoweredOff);
        report.stats.churn = Kind::ALL.map(|kind| (kind, effect(kind))).into();
        report
    }

    #[test]
    fn every_kind_has_a_least_that_follows_the_time() {
        let kinds = LEAST.map(|(kind, _)| kind);
        assert_eq!(kinds, Kind::ALL);
        let apart = parsed(&[]).workers();
        assert_eq!(least(60, apart), LEAST);
        assert!(least(1, apart).iter().all(|(_, least)| *least >= 1));
        assert_eq!(least(120, apart).map(|(_, least)| least), LEAST.map(|(_, least)| 2 * least));
    }

    #[test]
    fn less_is_asked_of_cpus_that_have_vcpus_but_for_sessions() {
        let shared = parsed(&["--smp", "2", "--vcpus", "2"]).workers();
        let wanted = [400, 2, 400, 4, 1, 4, 200, 4, 1, 1, 1];
        assert_eq!(least(60, shared).map(|(_, least)| least), wanted);
        assert_eq!(least(60, parsed(&["--smp", "4"]).workers()), LEAST);
    }

    #[test]
    fn too_little_of_one_kind_is_named() {
        let plenty = Effect { steps: 1_000_000, changed: 1_000_000, refused: 0 };
        assert_eq!(missing(&report(|_| plenty), LEAST), Vec::<String>::new());
        for (kind, least) in LEAST {
            let little = Effect { steps: least - 1, changed: least - 1, refused: 9 };
            let of = |it| if it == kind { little } else { plenty };
            let missing = missing(&report(of), LEAST);
            assert!(missing[0].starts_with(kind.name()), "{missing:?}");
            // Sessions that were not compared are missing twice.
            assert_eq!(missing.len(), 1 + usize::from(kind == Kind::Compare), "{missing:?}");
        }
        assert_eq!(missing(&Report::new(Outcome::PoweredOff), LEAST).len(), Kind::ALL.len());
    }

    #[test]
    fn a_session_that_was_begun_and_not_compared_is_a_failure() {
        let of = |begun, compared| {
            missing(
                &report(|kind| match kind {
                    Kind::Session => Effect { steps: begun, changed: begun, refused: 0 },
                    Kind::Compare => Effect { steps: compared, changed: 1 << 30, refused: 0 },
                    _ => Effect { steps: 1000, changed: 1_000_000, refused: 0 },
                }),
                LEAST,
            )
        };
        assert_eq!(of(7, 7), Vec::<String>::new());
        assert_eq!(of(8, 7), ["7 of 8 sessions were compared to their end"]);
    }

    #[test]
    fn linux_runs_the_workload_with_the_manager_on_a_cpu_of_its_own() {
        let linux = with_linux(&parsed(&["linux-6.1", "--seconds", "30", "--seed", "5"]));
        assert_eq!((linux.kernel.as_str(), linux.vcpus, linux.smp), ("6.1", 2, Some(3)));
        assert_eq!(linux.hyp.churn, Some(Wanted { seconds: 30, seed: 5, session: None }));
        let script = linux.script.unwrap();
        assert!(script.starts_with("seconds=30\n") && script.ends_with(WORKLOAD));
        assert_eq!(with_linux(&parsed(&[])).kernel, "6.12");
    }

    #[test]
    fn a_guest_of_ours_is_a_run() {
        let run = ours(&parsed(&["churn", "--vcpus", "4", "--smp", "4", "--blocks"]));
        assert_eq!((run.vcpus, run.smp, run.common.blocks), (Some(4), Some(4), true));
        assert_eq!(run.append.as_deref(), Some("by=manager seconds=60"));
        assert_eq!(run.hyp.churn, Some(Wanted { seconds: 60, seed: 0, session: None }));
        assert!(Cli::try_parse_from(["hypctl", "churn", "hello"]).is_err());
    }
}
