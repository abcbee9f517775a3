use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, parallel, simd, vector};

use super::Dropout;

/// Elements a thread takes at a time.
const CHUNK: usize = 16 * 1024;

/// Masks and scales `x`.
pub(super) fn apply(x: &[f32], op: &Dropout) -> Result<Vec<f32>> {
    let level = simd::level()?;
    let mut out = Buffer::new(x.len());
    let to = out.pointer();
    parallel::for_each(x.len().div_ceil(CHUNK), |i| {
        let x = &x[i * CHUNK..x.len().min((i + 1) * CHUNK)];
        // SAFETY: chunk i starts within the buffer, which is as long as all chunks together.
        let to = unsafe { to.at(i * CHUNK) };
        level.run(Kernel { x: x.as_ptr(), to, n: x.len(), first: i * CHUNK, op });
    });
    // SAFETY: the chunks cover the buffer and the kernel writes each element of its chunk.
    Ok(unsafe { out.finish() })
}

/// Elements `first..first + n` of a tensor that dropout is applied to.
struct Kernel<'a> {
    x: *const f32,
    to: *mut f32,
    n: usize,
    first: usize,
    op: &'a Dropout,
}

impl WithSimd for Kernel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, to, n, first, op } = self;
        // SAFETY: both pointers are to n elements, which this task alone writes.
        unsafe { range(s, x, to, n, first, op) }
    }
}

/// Masks and scales elements `first..first + n` of a tensor from `x` to `to`, which may be the same.
///
/// # Safety
/// Both point to `n` elements; nobody else accesses those of `to`.
#[inline(always)]
pub(crate) unsafe fn range<S: Simd>(s: S, x: *const f32, to: *mut f32, n: usize, first: usize, op: &Dropout) {
    let lanes = S::F32_LANES;
    let (threshold, scale) = (s.splat_u32s(op.threshold()), s.splat_f32s(op.scale()));
    let (key, step) = (op.stream.key(), op.stream.step());
    for group in first / 64..(first + n).div_ceil(64) {
        let block = 16 * group as u64;
        for part in (0..16).step_by(lanes) {
            // 16 blocks of a group never straddle a multiple of 2³²: their high word is one number.
            let index = s.add_u32s(s.splat_u32s(block as u32 + part as u32), vector::lanes(s));
            let words = vector::philox(s, index, (block >> 32) as u32, step, key);
            for (w, word) in words.into_iter().enumerate() {
                let at = 64 * group + 16 * w + part;
                // The lanes within the range.
                let (from, until) = (first.saturating_sub(at).min(lanes), (first + n).saturating_sub(at).min(lanes));
                if from >= until {
                    continue;
                }
                let mask = s.mask_between_m32s(from as u32, until as u32).mask();
                // SAFETY: the lanes of the mask lie within x and within the output; the others are not touched.
                unsafe {
                    let x = vector::load(s, mask, x.wrapping_add(at).wrapping_sub(first));
                    let factor = s.select_f32s(s.less_than_u32s(word, threshold), s.splat_f32s(0.), scale);
                    vector::store(s, mask, to.wrapping_add(at).wrapping_sub(first), s.mul_f32s(x, factor));
                }
            }
        }
    }
}
