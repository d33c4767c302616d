//! The cases.

pub mod clear;
pub mod epoch;
pub mod hardware;
pub mod install;
pub mod primitive;
pub mod retire;
