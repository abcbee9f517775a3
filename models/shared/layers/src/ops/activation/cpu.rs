use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

use super::Activation;

/// Elements a thread takes at a time.
const CHUNK: usize = 16 * 1024;

/// Puts f(x) in the place of x, and returns f'(x) if it is asked for.
pub(in crate::ops) fn apply(x: &mut [f32], f: Activation, slope: bool) -> Result<Option<Vec<f32>>> {
    if f == Activation::Identity {
        return Ok(None);
    }
    let level = simd::level()?;
    let (n, to) = (x.len(), Pointer::of(x));
    let mut slopes = Buffer::new(if slope { n } else { 0 });
    let at = slopes.pointer();
    parallel::for_each(n.div_ceil(CHUNK), |i| {
        let first = i * CHUNK;
        // SAFETY: chunk i starts within both buffers, and lies within them; chunks are disjoint.
        let (x, slope) = unsafe { (to.at(first), slope.then(|| at.at(first))) };
        level.run(Kernel { x, slope, n: CHUNK.min(n - first), f });
    });
    // SAFETY: the chunks cover the buffer (which is empty if no slopes are wanted), and the kernel writes all of its own.
    Ok(slope.then(|| unsafe { slopes.finish() }))
}

/// a · b, element by element.
pub(in crate::ops) fn times(a: &[f32], b: &[f32]) -> Result<Vec<f32>> {
    let mut out = a.to_vec();
    times_into(&mut out, b)?;
    Ok(out)
}

/// a · b, in the place of a.
pub(in crate::ops) fn times_into(a: &mut [f32], b: &[f32]) -> Result<()> {
    let (level, n, to) = (simd::level()?, a.len(), Pointer::of(a));
    assert_eq!(b.len(), n);
    parallel::for_each(n.div_ceil(CHUNK), |i| {
        let b = &b[i * CHUNK..n.min((i + 1) * CHUNK)];
        // SAFETY: the chunk lies within a.
        level.run(Times { a: unsafe { to.at(i * CHUNK) }, b });
    });
    Ok(())
}

/// As many elements of a as there are of b.
struct Times<'a> {
    a: *mut f32,
    b: &'a [f32],
}

impl WithSimd for Times<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (a, b, n) = (self.a, self.b.as_ptr(), self.b.len());
        for j in (0..n).step_by(S::F32_LANES) {
            // SAFETY: both have n elements, and this task alone accesses those of a.
            unsafe { vector::write(s, a, j, n, s.mul_f32s(vector::read(s, a, j, n), vector::read(s, b, j, n))) }
        }
    }
}

/// `n` elements of x, and where their slopes go.
struct Kernel {
    x: *mut f32,
    slope: Option<*mut f32>,
    n: usize,
    f: Activation,
}

impl WithSimd for Kernel {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        points(s, self.f, self);
    }
}

/// What is done with the function's values and slopes.
trait Each {
    /// `f` gives both for lanes of x.
    fn each<S: Simd>(self, s: S, f: impl Fn(S::f32s) -> (S::f32s, S::f32s));
}

#[inline(always)]
fn points<S: Simd>(s: S, f: Activation, each: impl Each) {
    const ROOT: f32 = 0.797_884_6; // √(2/π)
    let c = |v: f32| s.splat_f32s(v);
    let (zero, one) = (c(0.), c(1.));
    match f {
        Activation::Identity => each.each(s, |x| (x, one)),
        Activation::Relu => each.each(s, |x| {
            // Compared so that NaN stays.
            let negative = s.less_than_f32s(x, zero);
            // A gradient goes through where x is NaN, as in PyTorch.
            let flat = s.less_than_or_equal_f32s(x, zero);
            (s.select_f32s(negative, zero, x), s.select_f32s(flat, zero, one))
        }),
        Activation::Gelu => each.each(s, |x| {
            let (below, density) = vector::normal(s, x);
            let density = s.mul_f32s(density, c(0.398_942_3));
            (s.mul_f32s(x, below), s.mul_add_e_f32s(x, density, below))
        }),
        Activation::GeluTanh => each.each(s, |x| {
            // (1 + tanh u)/2 = σ(2u) and (1 - tanh² u)/4 = σ(2u) σ(-2u), which are exact where 1 - tanh² is not.
            let x2 = s.mul_f32s(x, x);
            let u2 = s.mul_f32s(s.mul_f32s(x, c(2. * ROOT)), s.mul_add_e_f32s(c(0.044715), x2, one));
            let power = vector::exp(s, s.neg_f32s(s.abs_f32s(u2)));
            let large = s.div_f32s(one, s.add_f32s(one, power));
            let small = s.mul_f32s(power, large);
            let share = s.select_f32s(s.greater_than_f32s(u2, zero), large, small);
            let rise = s.mul_f32s(c(2. * ROOT), s.mul_add_e_f32s(c(0.134145), x2, one));
            // Where x³ overflows the slope of the share is 0.
            let flat = s.equal_f32s(small, zero);
            let rise = s.select_f32s(flat, zero, rise);
            (s.mul_f32s(x, share), s.mul_add_e_f32s(s.mul_f32s(s.mul_f32s(large, small), x), rise, share))
        }),
        Activation::Silu => each.each(s, |x| {
            // The sigmoid has a least value, which the lowest numbers make a large one of.
            let none = s.less_than_f32s(x, c(-87.));
            let share = s.select_f32s(none, zero, vector::sigmoid(s, x));
            let slope = s.mul_f32s(share, s.mul_add_e_f32s(x, s.sub_f32s(one, share), one));
            (s.mul_f32s(x, share), slope)
        }),
        Activation::Elu(alpha) => each.each(s, |x| {
            let alpha = c(alpha as f32);
            let positive = s.greater_than_f32s(x, zero);
            let y = s.mul_f32s(alpha, vector::exp_minus_one(s, s.select_f32s(positive, zero, x)));
            (s.select_f32s(positive, x, y), s.select_f32s(positive, one, s.add_f32s(y, alpha)))
        }),
    }
}

impl Each for Kernel {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, f: impl Fn(S::f32s) -> (S::f32s, S::f32s)) {
        let Self { x, slope, n, .. } = self;
        for j in (0..n).step_by(S::F32_LANES) {
            // SAFETY: x and the slopes have n elements, which this task alone accesses.
            unsafe {
                let (y, rise) = f(vector::read(s, x, j, n));
                vector::write(s, x, j, n, y);
                if let Some(slope) = slope {
                    vector::write(s, slope, j, n, rise);
                }
            }
        }
    }
}

/// f(gate) · up, element by element.
pub(in crate::ops) fn gated(gate: &[f32], up: &[f32], f: Activation) -> Result<Vec<f32>> {
    let (level, n) = (simd::level()?, gate.len());
    assert_eq!(up.len(), n);
    let mut y = Buffer::new(n);
    let to = y.pointer();
    parallel::for_each(n.div_ceil(CHUNK), |i| {
        let part = i * CHUNK..n.min((i + 1) * CHUNK);
        // SAFETY: the chunk lies within the buffer; chunks are disjoint.
        let y = unsafe { to.at(part.start) };
        level.run(Gated { gate: &gate[part.clone()], up: &up[part], f, to: To::Product(y) });
    });
    // SAFETY: the chunks cover the buffer.
    Ok(unsafe { y.finish() })
}

/// Gradients of gate and up: dy · up · f'(gate), and dy · f(gate).
pub(in crate::ops) fn gated_back(gate: &[f32], up: &[f32], dy: &[f32], f: Activation) -> Result<[Vec<f32>; 2]> {
    let (level, n) = (simd::level()?, gate.len());
    assert!(up.len() == n && dy.len() == n);
    let (mut dgate, mut dup) = (Buffer::new(n), Buffer::new(n));
    let (to_gate, to_up) = (dgate.pointer(), dup.pointer());
    parallel::for_each(n.div_ceil(CHUNK), |i| {
        let part = i * CHUNK..n.min((i + 1) * CHUNK);
        // SAFETY: the chunk lies within both buffers; chunks are disjoint.
        let (dgate, dup) = unsafe { (to_gate.at(part.start), to_up.at(part.start)) };
        let to = To::Gradients { dy: &dy[part.clone()], dgate, dup };
        level.run(Gated { gate: &gate[part.clone()], up: &up[part], f, to });
    });
    // SAFETY: the chunks cover both buffers.
    Ok(unsafe { [dgate.finish(), dup.finish()] })
}

/// As many elements of each.
struct Gated<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    f: Activation,
    to: To<'a>,
}

enum To<'a> {
    Product(*mut f32),
    Gradients { dy: &'a [f32], dgate: *mut f32, dup: *mut f32 },
}

impl WithSimd for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        points(s, self.f, self);
    }
}

impl Each for Gated<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, f: impl Fn(S::f32s) -> (S::f32s, S::f32s)) {
        let Self { gate, up, to, .. } = self;
        let n = gate.len();
        for j in (0..n).step_by(S::F32_LANES) {
            // SAFETY: all have n elements, and this task alone accesses those that are written.
            unsafe {
                let (y, rise) = f(vector::read(s, gate.as_ptr(), j, n));
                let up = vector::read(s, up.as_ptr(), j, n);
                match to {
                    To::Product(to) => vector::write(s, to, j, n, s.mul_f32s(y, up)),
                    To::Gradients { dy, dgate, dup } => {
                        let dy = vector::read(s, dy.as_ptr(), j, n);
                        vector::write(s, dgate, j, n, s.mul_f32s(s.mul_f32s(dy, up), rise));
                        vector::write(s, dup, j, n, s.mul_f32s(dy, y));
                    }
                }
            }
        }
    }
}
