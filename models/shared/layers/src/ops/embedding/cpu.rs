use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector};

use crate::ops::dropout::{Dropout, range};

/// Tokens a thread takes at a time.
const TOKENS: usize = 64;
/// Columns of the table that a thread adds up at a time.
const COLUMNS: usize = 64;

/// Rows of `table` and `positions` (one for each of `t` positions), `c` wide, added and masked.
pub(super) fn forward(
    ids: &[i64],
    table: &[f32],
    positions: Option<&[f32]>,
    t: usize,
    c: usize,
    dropout: Option<&Dropout>,
) -> Result<Vec<f32>> {
    let level = simd::level()?;
    let mut y = Buffer::new(ids.len() * c);
    let to = y.pointer();
    parallel::chunks(ids.len(), TOKENS, |tokens| {
        level.run(Rows { ids, table, positions, t, c, dropout, tokens, to });
    });
    // SAFETY: the tasks cover all tokens, and each writes all elements of its own.
    Ok(unsafe { y.finish() })
}

struct Rows<'a> {
    ids: &'a [i64],
    table: &'a [f32],
    positions: Option<&'a [f32]>,
    t: usize,
    c: usize,
    dropout: Option<&'a Dropout>,
    tokens: std::ops::Range<usize>,
    to: Pointer,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { ids, table, positions, t, c, dropout, tokens, to } = self;
        let (first, n) = (tokens.start * c, tokens.len() * c);
        for i in tokens {
            let row = table[ids[i] as usize * c..][..c].as_ptr();
            let place = positions.map(|p| p[i % t * c..][..c].as_ptr());
            // SAFETY: the rows have c elements, as that of the output, which belongs to this task.
            unsafe {
                let y = to.at(i * c);
                for j in (0..c).step_by(S::F32_LANES) {
                    let mut v = vector::read(s, row, j, c);
                    if let Some(place) = place {
                        v = s.add_f32s(v, vector::read(s, place, j, c));
                    }
                    vector::write(s, y, j, c, v);
                }
            }
        }
        if let Some(dropout) = dropout {
            // SAFETY: these are this task's elements of the output, just written.
            unsafe { range(s, to.at(first), to.at(first), n, first, dropout) }
        }
    }
}

/// (rows, c) with each row of `d` added to row `of(its number)`.
pub(super) fn add_rows(rows: usize, c: usize, d: &[f32], of: impl Fn(usize) -> usize + Sync + Send) -> Vec<f32> {
    let mut sums = vec![0f32; rows * c];
    let to = Pointer::of(&mut sums);
    parallel::chunks(c, COLUMNS, |columns| {
        for (i, d) in d.chunks_exact(c).enumerate() {
            let row = of(i);
            assert!(row < rows, "no such row");
            // SAFETY: the row lies within the sums, and these columns belong to this task alone.
            let sums = unsafe { std::slice::from_raw_parts_mut(to.at(row * c + columns.start), columns.len()) };
            sums.iter_mut().zip(&d[columns.clone()]).for_each(|(s, d)| *s += d);
        }
    });
    sums
}
