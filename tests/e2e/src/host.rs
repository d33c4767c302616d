//! Who may use the host's CPUs.
//!
//! Tests run side by side, and most do not care. A guest whose vCPUs must meet in the same few
//! instructions does: on a host with two cores it needs both of them at the same time. Every run
//! holds a share of the host; a run that must be alone waits until all shares are given back.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static HOST: RwLock<()> = RwLock::new(());

/// A hold on the host, until dropped.
#[derive(Debug)]
pub enum Hold {
    /// Beside others.
    Shared(RwLockReadGuard<'static, ()>),
    /// With nobody else.
    Alone(RwLockWriteGuard<'static, ()>),
}

/// Waits until nobody has the host alone, and takes a share of it.
#[must_use]
pub fn shared() -> Hold {
    // A test that failed while holding it has broken nothing.
    Hold::Shared(HOST.read().unwrap_or_else(PoisonError::into_inner))
}

/// Waits until nobody uses the host, and takes it.
#[must_use]
pub fn alone() -> Hold {
    Hold::Alone(HOST.write().unwrap_or_else(PoisonError::into_inner))
}
