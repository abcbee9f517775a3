use candle_core::Result;
use pulp::{Simd, WithSimd};

use super::Dropout;
use crate::ops::glue::{Buffer, parallel, simd, vector};

/// Elements a thread takes at a time; a multiple of 64.
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
        level.run(Kernel { x, to, first_block: (i * CHUNK / 4) as u64, op });
    });
    // SAFETY: the chunks cover the buffer and the kernel writes each element of its chunk.
    Ok(unsafe { out.finish() })
}

struct Kernel<'a> {
    x: &'a [f32],
    to: *mut f32,
    first_block: u64,
    op: &'a Dropout,
}

impl WithSimd for Kernel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let lanes = S::F32_LANES;
        let (threshold, scale) = (s.splat_u32s(self.op.threshold()), s.splat_f32s(self.op.scale()));
        let (key, step) = (self.op.stream.key(), self.op.stream.step());
        for group in 0..self.x.len().div_ceil(64) {
            let block = self.first_block + 16 * group as u64;
            for part in (0..16).step_by(lanes) {
                // 16 blocks of a group never straddle a multiple of 2³²: their high word is one number.
                let index = s.add_u32s(s.splat_u32s(block as u32 + part as u32), vector::lanes(s));
                let words = vector::philox(s, index, (block >> 32) as u32, step, key);
                for (w, word) in words.into_iter().enumerate() {
                    let at = 64 * group + 16 * w + part;
                    let mask = vector::first(s, self.x.len().saturating_sub(at).min(lanes));
                    // SAFETY: the lanes of the mask lie within x and within the chunk of the output, which is as long.
                    unsafe {
                        let x = vector::load(s, mask, self.x.as_ptr().wrapping_add(at));
                        let factor = s.select_f32s(s.less_than_u32s(word, threshold), s.splat_f32s(0.), scale);
                        vector::store(s, mask, self.to.wrapping_add(at), s.mul_f32s(x, factor));
                    }
                }
            }
        }
    }
}
