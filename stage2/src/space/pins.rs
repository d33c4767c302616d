//! Choices that a measurement or a test makes for a VM, instead of what the machine and the cost model ask for.
//!
//! They can be made while the VM runs: what begins afterwards goes by them, what is under way by the one or the other.
//! They order nothing.

use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;

use super::prot::Engine;
use crate::cost::Pinned;
use crate::features::Bbm;

/// The choices of one VM; 0 is none.
#[derive(Debug, Default)]
pub(super) struct Pins {
    flushes: AtomicU8,
    engine: AtomicU8,
    bbm: AtomicU8,
}

impl Pins {
    pub(super) fn pin_flushes(&self, form: Option<Pinned>) {
        self.flushes.store(number(&FORMS, form), Relaxed);
    }

    pub(super) fn flushes(&self) -> Option<Pinned> {
        choice(&FORMS, &self.flushes)
    }

    pub(super) fn pin_engine(&self, engine: Option<Engine>) {
        self.engine.store(number(&ENGINES, engine), Relaxed);
    }

    pub(super) fn engine(&self) -> Option<Engine> {
        choice(&ENGINES, &self.engine)
    }

    pub(super) fn pin_bbm(&self, most: Option<Bbm>) {
        self.bbm.store(number(&LEVELS, most), Relaxed);
    }

    pub(super) fn bbm(&self) -> Option<Bbm> {
        choice(&LEVELS, &self.bbm)
    }
}

const FORMS: [Pinned; 3] = [Pinned::PerPage, Pinned::Range, Pinned::Vmid];
const ENGINES: [Engine; 3] = [Engine::InPlace, Engine::BreakUnsettled, Engine::Break];
const LEVELS: [Bbm; 3] = [Bbm::Level0, Bbm::Level1, Bbm::Level2];

/// Its place among all, counted from 1.
fn number<T: PartialEq, const N: usize>(all: &[T; N], chosen: Option<T>) -> u8 {
    let at = all.iter().position(|one| Some(one) == chosen.as_ref());
    at.map_or(0, |at| at as u8 + 1)
}

fn choice<T: Copy, const N: usize>(all: &[T; N], pin: &AtomicU8) -> Option<T> {
    all.get(usize::from(pin.load(Relaxed)).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_holds_until_another_is_made_or_it_is_given_up() {
        let pins = Pins::default();
        let all = || (pins.flushes(), pins.engine(), pins.bbm());
        assert_eq!(all(), (None, None, None));
        for ((form, engine), level) in FORMS.into_iter().zip(ENGINES).zip(LEVELS) {
            pins.pin_flushes(Some(form));
            pins.pin_engine(Some(engine));
            pins.pin_bbm(Some(level));
            assert_eq!(all(), (Some(form), Some(engine), Some(level)));
        }
        pins.pin_engine(None);
        assert_eq!(all(), (Some(Pinned::Vmid), None, Some(Bbm::Level2)), "each for itself");
        pins.pin_flushes(None);
        pins.pin_bbm(None);
        assert_eq!(all(), (None, None, None));
    }
}
