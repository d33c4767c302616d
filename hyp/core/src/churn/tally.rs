//! What came of the manager's steps, by kind.

use alloc::collections::BTreeMap;
use alloc::format;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::range::Count;

/// What came of one kind of step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Effect {
    /// Steps that changed something; of [`Kind::Compare`] the sessions that were compared as a whole.
    pub steps: u64,
    /// What they changed, in the [unit](Kind::unit) of the kind.
    pub changed: u64,
    /// Steps that were refused: another CPU was at it, or memory was short. Of [`Kind::Session`] also attempts to stop one.
    pub refused: u64,
}

/// What came of all of it, by kind. Kinds of which there was no step are missing.
pub type Effects = BTreeMap<Kind, Effect>;

/// The same while it is counted: without a heap.
#[derive(Clone, Copy, Debug)]
pub struct Tally([Effect; Kind::ALL.len()]);

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([Effect { steps: 0, changed: 0, refused: 0 }; Kind::ALL.len()])
    }

    /// A step of a kind has changed so much.
    pub fn add(&mut self, kind: Kind, changed: u64) {
        if let Some(effect) = self.0.get_mut(kind as usize) {
            effect.steps = effect.steps.saturating_add(u64::from(changed != 0));
            effect.changed = effect.changed.saturating_add(changed);
        }
    }

    /// A comparison has harvested so many pages. That is no step of its own.
    pub fn copied(&mut self, pages: u64) {
        if let Some(effect) = self.0.get_mut(Kind::Harvest as usize) {
            effect.changed = effect.changed.saturating_add(pages);
        }
    }

    /// So many pages were compared; whether they were a session's last.
    pub fn compared(&mut self, pages: u64, is_last: bool) {
        if let Some(effect) = self.0.get_mut(Kind::Compare as usize) {
            effect.steps = effect.steps.saturating_add(u64::from(is_last));
            effect.changed = effect.changed.saturating_add(pages);
        }
    }

    /// A step of a kind was refused.
    pub fn refuse(&mut self, kind: Kind) {
        if let Some(effect) = self.0.get_mut(kind as usize) {
            effect.refused = effect.refused.saturating_add(1);
        }
    }

    /// For a report.
    #[must_use]
    pub fn effects(&self) -> Effects {
        let all = Kind::ALL.into_iter().zip(self.0);
        all.filter(|(_, effect)| *effect != Effect::default()).collect()
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

/// The rows of a summary, whose labels are so wide.
pub(crate) fn rows(effects: &Effects, f: &mut fmt::Formatter<'_>, label: usize) -> fmt::Result {
    for (kind, Effect { steps, changed, refused }) in effects {
        let (name, changed) = (format!("churn: {}", kind.name()), Count(*changed, kind.unit()));
        write!(f, "\n{name:label$} {changed} in {}", Count(*steps, "step"))?;
        if *refused != 0 {
            write!(f, ", {refused} refused")?;
        }
    }
    Ok(())
}
