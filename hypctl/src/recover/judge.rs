//! Whether a run came to what was expected of its scenario.

use hyp_core::report::{Outcome, Report};
use serde::{Serialize, Serializer};

use super::scenarios::{Count, End, Scenario};
use crate::machine::shell_line;
use crate::summary::Summary;

/// A run, and what is wrong with it.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What it does.
    pub about: &'static str,
    /// The policy of the addresses that it reaches for.
    pub policy: &'static str,
    /// The CPU model.
    pub cpu: String,
    /// Violations that there had to be.
    #[serde(serialize_with = "as_text")]
    pub expected: Count,
    /// Those that there were; `None` without a report.
    pub seen: Option<u64>,
    /// How the run ended, in words.
    pub outcome: String,
    /// What is not as it has to be; nothing if all is.
    pub wrong: Vec<String>,
    /// How to repeat it.
    pub command: String,
    /// The run's own summary, with the hypervisor's report in it.
    pub summary: Summary,
    /// Everything that was printed.
    #[serde(skip)]
    pub console: String,
}

fn as_text<S: Serializer>(count: &Count, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(count)
}

impl Judged {
    /// Judges a run.
    pub fn of(scenario: &'static Scenario, cpu: &str, summary: Summary, console: String) -> Self {
        let words: Vec<_> = scenario.words(cpu).iter().map(Into::into).collect();
        let report = summary.report.clone().map(serde_json::from_value::<Report>);
        let mut judged = Self {
            scenario: scenario.name,
            about: scenario.about,
            policy: scenario.policy,
            cpu: cpu.to_owned(),
            expected: scenario.expected(cpu),
            seen: None,
            outcome: String::new(),
            wrong: Vec::new(),
            command: shell_line("hypctl".as_ref(), &words),
            summary,
            console,
        };
        match report {
            Some(Ok(report)) if judged.summary.ended == "report" => {
                judged.report(scenario, &report)
            }
            Some(Err(error)) => judged.without(format!("the report cannot be read: {error}")),
            _ => judged.without(judged.summary.message.clone().unwrap_or_default()),
        }
        judged
    }

    /// Whether it came to what was expected.
    pub fn is_as_expected(&self) -> bool {
        self.wrong.is_empty()
    }

    /// There is no report to judge by.
    fn without(&mut self, why: String) {
        self.outcome = if why.is_empty() { self.summary.ended.to_owned() } else { why };
        self.wrong.push(self.outcome.clone());
    }

    fn report(&mut self, scenario: &Scenario, report: &Report) {
        let seen = violations(report);
        self.seen = Some(seen);
        self.outcome = report.outcome.to_string();
        if !self.expected.holds(seen) {
            self.wrong.push(format!("violations: {seen}, not {}", self.expected));
        }
        let wanted = match scenario.end {
            End::Passes | End::Reset(_) => 0,
            End::Stopped(_) => Outcome::Stopped.exit_code(),
        };
        if report.exit_code != wanted {
            let why = report.reason.clone().or(self.summary.message.clone()).unwrap_or_default();
            self.wrong.push(format!("exit code {}, not {wanted} {why}", report.exit_code));
        }
        let diagnosis = report.diagnosis.as_ref().map(ToString::to_string);
        if let End::Stopped(words) = scenario.end {
            let said = diagnosis.clone().unwrap_or_default();
            let missing = words.iter().filter(|word| !said.contains(**word));
            self.wrong.extend(missing.map(|word| format!("the diagnosis does not say {word:?}")));
        }
        if let End::Reset(lives) = scenario.end
            && (report.outcome, report.lives) != (Outcome::Reset, lives)
        {
            self.wrong.push(format!("started {} times, not {lives}", report.lives));
        }
        let logged = report.violation_log.total();
        let (least, most) = (report.stats.recovered + report.stats.injected, seen);
        if !(least..=most).contains(&logged) {
            self.wrong.push(format!("the log tells of {logged} violations, not {most}"));
        }
        self.wrong.extend((scenario.check)(report));
        let mut rest = self.console.as_str();
        for text in scenario.shows {
            match rest.split_once(text) {
                Some((_, behind)) => rest = behind,
                None => {
                    self.wrong.push(format!("the console does not show {text:?} where it is due"))
                }
            }
        }
        match &report.takedown {
            Some(down) => self.wrong.extend(down.complaint()),
            None => self.wrong.push("the VM was not taken down".to_owned()),
        }
        if !self.wrong.is_empty() {
            self.wrong.extend(diagnosis);
            let said = self.console.lines().filter(|line| line.contains("FAIL"));
            self.wrong.extend(said.map(str::to_owned));
        }
    }
}

/// Violations that a report speaks of: those that the guest went on from, and the one that it was stopped for.
fn violations(report: &Report) -> u64 {
    let stopped = u64::from(report.diagnosis.is_some());
    report.stats.recovered + report.stats.injected + stopped
}
