//! Repeatable disorder: the same seed gives the same order on every run.

/// A bijection of `0..len`: `i -> (i * step + offset) mod len` with `step` coprime to `len`.
#[derive(Clone, Copy)]
pub struct Permutation {
    len: usize,
    step: usize,
    offset: usize,
}

impl Permutation {
    /// The permutation of `0..len` that `seed` selects.
    pub fn new(len: usize, seed: u64) -> Self {
        let len = len.max(1);
        let mut step = mix(seed) as usize % len;
        while gcd(step, len) != 1 {
            step = (step + 1) % len.max(2);
        }
        Self { len, step, offset: mix(!seed) as usize % len }
    }

    /// Where `index` goes.
    pub fn at(&self, index: usize) -> usize {
        (index * self.step + self.offset) % self.len
    }
}

/// Spreads a seed over 64 bits (the finaliser of splitmix64).
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
