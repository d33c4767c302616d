//! Whether a run came to what was expected of its scenario.

use hyp_core::report::{Outcome, Report};
use serde::{Serialize, Serializer};

use super::scenarios::{Count, End, Scenario, between};
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
            command: shell_line("./just".as_ref(), &words),
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
        // Those of PROTECT are logged, too; and one that ended the VM may be.
        let others = report.stats.recovered + report.stats.injected + report.stats.violations;
        let (least, most) = (others, others + u64::from(report.diagnosis.is_some()));
        if !(least..=most).contains(&logged) {
            let wanted = between(least, most);
            self.wrong.push(format!("the log tells of {logged} violations, not {wanted}"));
        }
        self.wrong.extend((scenario.check)(report));
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

#[cfg(test)]
mod tests {
    use hyp_core::report::Takedown;
    use hyp_core::violation::Summary as Log;

    use super::super::SCENARIOS;
    use super::*;

    /// A run of the first scenario that has this end; the report is as it has to be, but for what `change` does.
    fn judged(wanted: impl Fn(End) -> bool, change: impl FnOnce(&mut Report)) -> Judged {
        let scenario = SCENARIOS.iter().find(|one| wanted(one.end)).unwrap();
        let outcome = match scenario.end {
            End::Passes => Outcome::Verdict(0),
            End::Stopped(_) => Outcome::Stopped,
            End::Reset(_) => Outcome::Reset,
        };
        let mut report = Report::new(outcome);
        report.takedown = Some(Takedown::default());
        report.stats.recovered = scenario.expected("max").least;
        if let End::Reset(lives) = scenario.end {
            report.lives = lives;
        }
        report.violation_log = Log { others: report.stats.recovered, ..Log::default() };
        change(&mut report);
        let report = serde_json::to_value(report).ok();
        let summary = Summary { ended: "report", report, ..Summary::default() };
        Judged::of(scenario, "max", summary, "wild: FAIL: as it says\n".to_owned())
    }

    fn passes(end: End) -> bool {
        end == End::Passes
    }

    #[test]
    fn a_run_that_came_to_what_was_expected_is_not_wrong() {
        let run = judged(passes, |_| {});
        assert!(run.is_as_expected(), "{:?}", run.wrong);
        assert!(judged(|end| matches!(end, End::Reset(_)), |_| {}).is_as_expected());
    }

    /// What is said to be wrong.
    #[track_caller]
    fn wrong(words: &str, run: &Judged) {
        assert!(run.wrong.iter().any(|why| why.contains(words)), "{words:?}: {:?}", run.wrong);
    }

    #[test]
    fn whatever_differs_is_named() {
        let fails = judged(passes, |report| report.exit_code = 1);
        wrong("exit code 1, not 0", &fails);
        wrong("wild: FAIL: as it says", &fails);
        wrong("violations: ", &judged(passes, |report| report.stats.injected = 1));
        wrong("the log tells of", &judged(passes, |report| report.violation_log.lost = 1));
        wrong(
            "the log tells of 0",
            &judged(passes, |report| report.violation_log = Log::default()),
        );
        wrong("not taken down", &judged(passes, |report| report.takedown = None));
        let leak = |report: &mut Report| {
            report.takedown = Some(Takedown { leaked_frames: 1, ..Takedown::default() });
        };
        wrong("1 frame", &judged(passes, leak));
        let stopped = |end| matches!(end, End::Stopped(words) if !words.is_empty());
        wrong("the diagnosis does not say", &judged(stopped, |_| {}));
        let fewer = |report: &mut Report| report.lives = 1;
        wrong("started 1 times", &judged(|end| matches!(end, End::Reset(_)), fewer));
    }

    #[test]
    fn without_a_report_nothing_is_as_expected() {
        let summary = Summary {
            ended: "timeout",
            message: Some("timeout after 1 s".to_owned()),
            ..Summary::default()
        };
        let run = Judged::of(&SCENARIOS[0], "max", summary, String::new());
        assert_eq!((run.seen, run.is_as_expected()), (None, false));
        wrong("timeout after 1 s", &run);
    }
}
