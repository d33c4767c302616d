//! The cases.

pub mod alike;
pub mod clear;
pub mod copy;
pub mod disjoint;
pub mod epoch;
pub mod fill;
pub mod hardware;
pub mod install;
pub mod look;
pub mod policy;
pub mod primitive;
pub mod prot;
pub mod ranges;
pub mod resize;
pub mod retire;
pub mod vmid;
