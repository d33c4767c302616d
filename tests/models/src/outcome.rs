//! How often a case came to which of its outcomes, over all executions.
//!
//! A checker runs all threads of a model on one thread of the host, so that thread's tally is the
//! model's. Neither checker sees it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;

thread_local! {
    static TALLY: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// This execution came to `name`. One execution may come to several.
pub fn reached(name: &'static str) {
    TALLY.with_borrow_mut(|tally| *tally.entry(name).or_default() += 1);
}

/// Forgets what earlier models came to.
pub(crate) fn reset() {
    TALLY.with_borrow_mut(BTreeMap::clear);
}

/// The tally in words.
///
/// # Panics
/// When one of `expected` was never reached: the model has lost its point.
pub(crate) fn settle(expected: &[&str]) -> String {
    TALLY.with_borrow(|tally| {
        for name in expected {
            assert!(tally.contains_key(name), "no execution came to {name:?}: {tally:?}");
        }
        let mut words = String::new();
        for (name, count) in tally {
            let _ = write!(words, "{}{name} {count}", if words.is_empty() { "" } else { ", " });
        }
        words
    })
}
