use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

/// Samples a thread takes at a time.
const SAMPLES: usize = 4;

pub(super) fn forward([b, s, c]: [usize; 3], x: &[f32], w: &[f32]) -> Result<Vec<f32>> {
    let level = simd::level()?;
    assert!(x.len() == b * s * c && w.len() == s);
    let mut y = Buffer::new(b * c);
    let to = y.pointer();
    parallel::chunks(b, SAMPLES, |samples| {
        for i in samples {
            // SAFETY: the row of this sample lies within y and belongs to this task.
            level.run(Sum { x: &x[i * s * c..][..s * c], w, y: unsafe { to.at(i * c) }, c });
        }
    });
    // SAFETY: the tasks cover all samples.
    Ok(unsafe { y.finish() })
}

struct Sum<'a> {
    x: &'a [f32],
    w: &'a [f32],
    y: *mut f32,
    c: usize,
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, w, y, c } = self;
        for j in (0..c).step_by(S::F32_LANES) {
            let mut sum = s.splat_f32s(0.);
            for (place, w) in w.iter().enumerate() {
                // SAFETY: x has a row of c elements for each weight.
                let x = unsafe { vector::read(s, x.as_ptr().add(place * c), j, c) };
                sum = s.mul_add_e_f32s(s.splat_f32s(*w), x, sum);
            }
            // SAFETY: y has c elements.
            unsafe { vector::write(s, y, j, c, sum) }
        }
    }
}

/// The gradients of x, and for each sample those of the weights (b, s).
pub(super) fn backward([b, s, c]: [usize; 3], x: &[f32], w: &[f32], g: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let level = simd::level()?;
    assert!(x.len() == b * s * c && w.len() == s && g.len() == b * c);
    let (mut dx, mut dw) = (Buffer::new(b * s * c), Buffer::new(b * s));
    let (to, sums) = (dx.pointer(), dw.pointer());
    parallel::chunks(b, SAMPLES, |samples| {
        for i in samples {
            let (x, g) = (&x[i * s * c..][..s * c], &g[i * c..][..c]);
            level.run(Spread { x, w, g, dx: to.part(i * s * c), dw: sums.part(i * s) });
        }
    });
    // SAFETY: the tasks cover all samples.
    Ok(unsafe { (dx.finish(), dw.finish()) })
}

struct Spread<'a> {
    x: &'a [f32],
    w: &'a [f32],
    g: &'a [f32],
    dx: Pointer,
    dw: Pointer,
}

impl WithSimd for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, w, g, dx, dw } = self;
        let c = g.len();
        for (place, w) in w.iter().enumerate() {
            let (weight, mut sum) = (s.splat_f32s(*w), s.splat_f32s(0.));
            for j in (0..c).step_by(S::F32_LANES) {
                // SAFETY: x and its gradient have a row of c elements for each weight; this task alone writes this sample's.
                unsafe {
                    let g = vector::read(s, g.as_ptr(), j, c);
                    sum = s.mul_add_e_f32s(vector::read(s, x.as_ptr().add(place * c), j, c), g, sum);
                    vector::write(s, dx.at(place * c), j, c, s.mul_f32s(weight, g));
                }
            }
            // SAFETY: as above.
            unsafe { dw.at(place).write(s.reduce_sum_f32s(sum)) }
        }
    }
}
