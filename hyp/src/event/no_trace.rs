//! Nothing is recorded in a build without the feature `trace`.

/// A context synchronization that is no method of `Arch`.
#[inline]
pub(crate) fn synchronized() {}

/// The invalidation that a vCPU starts with.
#[inline]
pub(crate) fn reset_el1() {}

/// An install is over: the guest resumes and relies on it.
#[inline]
pub(crate) fn published() {}

/// A frame that a guest may have had goes back to its stock.
#[inline]
pub(crate) fn frame_given_back(_frame: u64, _bytes: u64) {}

/// Where EL2's own tables begin.
#[inline]
pub(crate) fn el2_root(_root: u64) {}
