//! Why a descriptor cannot be made.

use core::fmt;

use crate::addr::{Level, Pa};
use crate::attr::AttributeError;

/// Why a descriptor cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// The output address is unaligned for the level, or needs more than 48 bits.
    Address {
        /// Level of the slot.
        level: Level,
        /// The address.
        pa: Pa,
    },
    /// Leaves exist at levels 1 to 3, tables at levels 0 to 2.
    Level {
        /// Level of the slot.
        level: Level,
    },
    /// The attributes have no encoding on this machine.
    Attributes(AttributeError),
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { level, pa } => {
                write!(f, "a {level} descriptor cannot point to {pa}")
            }
            Self::Level { level } => write!(f, "no such descriptor at {level}"),
            Self::Attributes(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DescriptorError {}

impl From<AttributeError> for DescriptorError {
    fn from(error: AttributeError) -> Self {
        Self::Attributes(error)
    }
}
