//! Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as 1, 2, 3*,
//! SC 2011).
//!
//! A number is a pure function of (seed, purpose, layer, step, index): nothing is consumed, so a run repeats to the
//! bit whatever the number of threads, and a resumed run needs no generator state.

/// What a stream of random numbers is for. Streams of different purposes are independent under one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of parameters.
    Init = 1,
    /// Dropout masks.
    Dropout = 2,
    /// The order of training samples.
    Shuffle = 3,
    /// Sampling from a model's output.
    Sampling = 4,
    /// Simulated data.
    Simulation = 5,
    /// Random changes of training samples.
    Augmentation = 6,
    /// Noise that brings dead parameters back.
    Repair = 7,
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;
pub(crate) const ROUNDS: usize = 10;
/// Multipliers and key increments of Philox4x32.
pub(crate) const CONSTANTS: [u32; 4] = [M0, M1, W0, W1];

/// One block of Philox4x32-10: four random words for a 128-bit counter under a 64-bit key.
#[inline]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (p0, p1) = (u64::from(M0) * u64::from(c0), u64::from(M1) * u64::from(c2));
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        (k0, k1) = (k0.wrapping_add(W0), k1.wrapping_add(W1));
    }
    [c0, c1, c2, c3]
}

/// The finalizer of splitmix64: spreads every input bit over the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The identity of a layer within random streams: the FNV-1a hash of its path, such as `lstm.weight_ih_l0`.
pub fn layer_id(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// A random stream: its words are addressed by index, its draws by a cursor.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    step: [u32; 2],
    next: u64,
}

impl Stream {
    /// The stream of `purpose` for `layer` (see [`layer_id`]; 0 where there is only one) at `step`.
    pub fn new(seed: u64, purpose: Purpose, layer: u64, step: u64) -> Self {
        let key = mix(mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ u64::from(purpose as u32)) ^ layer);
        Self { key: [key as u32, (key >> 32) as u32], step: [step as u32, (step >> 32) as u32], next: 0 }
    }

    /// The key of the stream, for kernels that draw their own blocks.
    #[inline]
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// The last two words of the stream's counters.
    #[inline]
    pub fn step(&self) -> [u32; 2] {
        self.step
    }

    /// The four words of block `index`.
    #[inline]
    pub fn block(&self, index: u64) -> [u32; 4] {
        philox([index as u32, (index >> 32) as u32, self.step[0], self.step[1]], self.key)
    }

    /// The next random word.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        let word = self.block(self.next / 4)[(self.next % 4) as usize];
        self.next += 1;
        word
    }

    /// Uniform in [0, 1) with 53 random bits.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        let (a, b) = (u64::from(self.next_u32() >> 5), u64::from(self.next_u32() >> 6));
        (a * (1 << 26) + b) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    #[inline]
    pub fn normal(&mut self) -> f64 {
        let radius = (-2. * (1. - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Uniform in 0..n, without bias (Lemire's multiplication with rejection). `n` is at least 1.
    #[inline]
    pub fn below(&mut self, n: u32) -> u32 {
        let threshold = n.wrapping_neg() % n.max(1);
        loop {
            let product = u64::from(self.next_u32()) * u64::from(n);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// Puts `items` into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_words() {
        // Known answers of the authors' Random123 distribution.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn purposes_layers_steps_and_seeds_give_different_streams() {
        use Purpose::{Augmentation, Dropout, Init, Sampling, Shuffle, Simulation};
        let mut firsts = std::collections::HashMap::new();
        for purpose in [Init, Dropout, Shuffle, Sampling, Simulation, Augmentation] {
            for (seed, layer, step) in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 2, 0), (1, 0, 1), (1, 0, 1 << 32)] {
                let words = Stream::new(seed, purpose, layer, step).block(0);
                assert_eq!(words, Stream::new(seed, purpose, layer, step).block(0));
                if let Some(other) = firsts.insert(words, (purpose, seed, layer, step)) {
                    panic!("{:?} and {other:?} give the same words", (purpose, seed, layer, step));
                }
            }
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut s = Stream::new(7, Purpose::Simulation, 0, 0);
        let n = 100_000;
        let u: Vec<f64> = (0..n).map(|_| s.uniform()).collect();
        let z: Vec<f64> = (0..n).map(|_| s.normal()).collect();
        let moments = |v: &[f64]| {
            let mean = v.iter().sum::<f64>() / n as f64;
            (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
        };
        let ((um, uv), (zm, zv)) = (moments(&u), moments(&z));
        assert!(u.iter().all(|x| (0. ..1.).contains(x)));
        assert!((um - 0.5).abs() < 5e-3 && (uv - 1. / 12.).abs() < 2e-3, "{um} {uv}");
        assert!(zm.abs() < 0.015 && (zv - 1.).abs() < 0.02, "{zm} {zv}");
    }

    #[test]
    fn shuffle_is_a_permutation_and_below_stays_below() {
        let mut s = Stream::new(3, Purpose::Shuffle, 0, 1);
        let mut items: Vec<u32> = (0..1000).collect();
        s.shuffle(&mut items);
        assert!(items.windows(2).filter(|w| w[0] + 1 == w[1]).count() < 10);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
        assert!((0..1000).all(|_| s.below(7) < 7));
    }
}
