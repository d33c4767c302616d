//! The tool from outside: it judges the tests of a small workspace, in which every way to fail is seeded.

mod absent;
mod fixture;
mod judged;
mod leftovers;
