//! The fuzz target: a program and one fault, decoded from bytes.

use arbitrary::{Arbitrary, Unstructured};

use crate::program::{Fault, Op, Program, Setup};
use crate::run::{exhaust, run};

/// Operations of a program at the most: time for many programs instead of one.
const MOST: usize = 48;
/// A program this short is run with everything that can go wrong in it.
const SHORT: usize = 3;

/// The fuzz target.
pub fn check(bytes: &[u8]) {
    if let Some((program, fault)) = decode(bytes) {
        if program.ops.len() <= SHORT {
            exhaust(&program);
        } else {
            run(&program, fault);
        }
    }
}

/// The program that some bytes stand for, and what goes wrong in it.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<(Program, Fault)> {
    let mut input = Unstructured::new(bytes);
    let setup = Setup::arbitrary(&mut input).ok()?;
    let fault = Fault::arbitrary(&mut input).ok()?;
    let mut ops = Vec::new();
    while ops.len() < MOST && !input.is_empty() {
        ops.push(Op::arbitrary(&mut input).ok()?);
    }
    Some((Program { setup, ops }, fault))
}
