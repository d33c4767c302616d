//! SHADOW: the guest has a second copy of a range of its RAM kept and compared ([`second`](super::second)).
//!
//! ```text
//!  BEGIN   a frame for each page, with what the page's first touch would find
//!  ROUND   harvest a part; what it reports is copied, while the guest writes on           ─┐ as often
//!  END     all other CPUs stand still (`pause`); harvest; copy; compare every byte        ◀┘ as one likes
//! ```
//!
//! The guest begins and ends the log itself, by DIRTY_START and DIRTY_STOP; SHADOW takes the place of DIRTY_HARVEST. What
//! was harvested otherwise the shadow does not hear of.

use hyp_abi::call::{self, SHADOW_MAX, SHADOW_UNIT};
use stage2::{Ipa, IpaRange};

use super::logging::By;
use super::outcome::{Part, Refused};
use super::run::Env;
use super::second::Second;
use super::{logging, pause};

/// Harvests that are tried for one END: what one leaves over the next takes, and each takes 16 MiB.
const TRIES: usize = 8;

/// The second copy of a range.
#[derive(Debug)]
pub(super) struct Shadow(Second);

/// Answers SHADOW: `operation` on `bytes` bytes from `start`. Returns `x1` and `x2`. Called at a safe point.
pub(crate) fn call(
    env: Env<'_>,
    operation: u64,
    start: u64,
    bytes: u64,
) -> Result<[u64; 2], Refused> {
    let Some(mut held) = env.vm.shadow.try_lock() else { return Err(Refused::Busy) };
    let range = || {
        let aligned = (start | bytes).is_multiple_of(SHADOW_UNIT);
        let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
        if aligned { Ok(range) } else { Err(Refused::Invalid) }
    };
    match (operation, &mut *held) {
        (call::SHADOW_BEGIN, none @ None) => {
            *none = Some(Shadow::begin(env, range()?)?);
            Ok([bytes, 0])
        }
        (call::SHADOW_ROUND, Some(shadow)) => {
            let Part { bytes, count } = shadow.round(env, range()?)?;
            Ok([bytes, count])
        }
        (call::SHADOW_END, Some(shadow)) => {
            let ended = shadow.end(env)?;
            *held = None;
            Ok(ended)
        }
        (call::SHADOW_DROP, some @ Some(_)) => {
            *some = None;
            Ok([0; 2])
        }
        _ => Err(Refused::Invalid),
    }
}

impl Shadow {
    /// Takes the frames for a copy of a range that is logged.
    fn begin(env: Env<'_>, range: IpaRange) -> Result<Self, Refused> {
        if range.bytes() > SHADOW_MAX || !logging::asked(env)?.covers(&range) {
            return Err(Refused::Invalid);
        }
        Second::filled(env, range).map(Self)
    }

    /// Harvests the first part of a range, and copies what is reported.
    fn round(&mut self, env: Env<'_>, range: IpaRange) -> Result<Part, Refused> {
        if !self.0.range().covers(&range) {
            return Err(Refused::Invalid);
        }
        self.0.harvest(env, By::Guest, range)
    }

    /// Stops the guest, copies what is left, and compares.
    fn end(&mut self, env: Env<'_>) -> Result<[u64; 2], Refused> {
        let Some(pause) = pause::pause(env) else { return Err(Refused::Busy) };
        let mut copied = 0;
        let mut rest = self.0.range();
        let mut tries = 0..TRIES;
        loop {
            let part = self.round(env, rest)?;
            copied += part.count;
            let from = Ipa::new(rest.start().get() + part.bytes);
            match IpaRange::new(from, rest.bytes() - part.bytes) {
                Ok(more) if tries.next().is_some() => rest = more,
                Ok(_) => return Err(Refused::Busy),
                Err(_) => break,
            }
        }
        let differs = self.0.compare(env, self.0.range());
        drop(pause);
        Ok([copied, differs.map_err(Refused::Broken)?.map_or(0, Ipa::get)])
    }
}
