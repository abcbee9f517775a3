//! Products by `vdpbf16ps`: both factors are packed into panels of pairs of bf16, block by block of the inner dimension, and multiplied in
//! tiles whose sums stay in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu::buffer::{Pointer, with_scratch};
use crate::cpu::matmul::{Blend, PARALLEL};
use crate::cpu::parallel;
use crate::cpu::product::Matrix;

/// Rows and columns of a tile of the result: its sums take 24 of the 32 registers.
pub(super) const ROWS: usize = 8;
const COLUMNS: usize = 48;
/// Lanes of a register.
const LANES: usize = 16;
/// Elements of the inner dimension that are multiplied before their sums are added to the result.
const INNER: usize = 1024;
/// Columns of the right factor that are packed at a time, at most: 8 MB of them.
const WIDTH: usize = 4096 / COLUMNS * COLUMNS;
/// Rows of the left factor that a task packs, at most: a quarter of a megabyte of them.
const HEIGHT: usize = 128;

/// As [`product_into`](super::product_into).
///
/// # Safety
/// As there; the processor has the instructions.
pub(super) unsafe fn product_into(
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    bias: Option<&[f32]>,
    c: Pointer,
    c_row: usize,
    Blend { keep, scale }: Blend,
) {
    if m == 0 || n == 0 {
        return;
    }
    // Columns as lines.
    let b = Matrix { row: b.col, col: b.row, ..b };
    let inner = k.div_ceil(k.div_ceil(INNER)).next_multiple_of(2);
    let alone = m.saturating_mul(n).saturating_mul(k) < PARALLEL;
    let each = |n: usize, f: &(dyn Fn(usize) + Sync)| if alone { (0..n).for_each(f) } else { parallel::for_each(n, f) };
    // How the result is cut into tasks does not change a bit of it.
    let tasks = if alone { 1 } else { 4 * rayon::current_num_threads() };
    let height = m.div_ceil(tasks).next_multiple_of(ROWS).min(HEIGHT);
    for columns in (0..n).step_by(WIDTH).map(|first| first..n.min(first + WIDTH)) {
        let panels = columns.len().div_ceil(COLUMNS);
        let heights = m.div_ceil(height);
        let group = panels.div_ceil(tasks.div_ceil(heights).clamp(1, panels));
        let groups = panels.div_ceil(group);
        with_scratch(panels * COLUMNS * inner / 2, |right| {
            let right = Pointer::of(right);
            for inner in (0..k).step_by(inner).map(|first| first..k.min(first + inner)) {
                let (pairs, is_first) = (inner.len().div_ceil(2), inner.start == 0);
                let panel = |p: usize| right.part(p * COLUMNS * pairs);
                let of_panels = |p: Range<usize>| {
                    columns.start + p.start * COLUMNS..columns.end.min(columns.start + p.end * COLUMNS)
                };
                each(panels, &|p| {
                    // SAFETY: the panel has room for its columns and belongs to this task; the factor reaches as far.
                    unsafe { pack(b, of_panels(p..p + 1), inner.clone(), COLUMNS, panel(p).at(0).cast()) }
                });
                each(heights * groups, &|task| {
                    let (first, panels) = (task / groups * height, task % groups * group);
                    let rows = first..m.min(first + height);
                    let columns = of_panels(panels..panels + group);
                    with_scratch(height * pairs, |left| {
                        let left: *mut u32 = left.as_mut_ptr().cast();
                        let bias = bias.filter(|_| is_first).map(|bias| &bias[columns.clone()]);
                        let keep = if is_first { keep } else { 1. };
                        // SAFETY: the block has room for its rows; the panels were packed; these rows and columns of the result
                        // belong to this task.
                        unsafe {
                            pack(a, rows.clone(), inner.clone(), ROWS, left);
                            let c = c.part(rows.start * c_row + columns.start).at(0);
                            let size = [rows.len(), columns.len()];
                            block(
                                pairs,
                                left,
                                panel(panels).at(0).cast(),
                                COLUMNS,
                                (c, c_row),
                                size,
                                (keep, scale, bias),
                            );
                        }
                    });
                });
            }
        });
    }
}

/// Rounds elements `inner` of the rows `lines` and lays them out in panels of `width` lines, [`ROWS`] or a multiple of [`LANES`]: for each pair
/// of elements, those of all lines of the panel. What lies beyond the lines and the elements is zero.
///
/// # Safety
/// The processor has the instructions; the matrix has these rows and columns; `to` has room for whole panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack(from: Matrix, lines: Range<usize>, inner: Range<usize>, width: usize, to: *mut u32) {
    let pairs = inner.len().div_ceil(2);
    let all = lines.len().next_multiple_of(width);
    // In groups of as many lines as there are lanes: two of the narrow panels, a part of a wide one.
    for done in (0..all).step_by(LANES) {
        let have = lines.len().saturating_sub(done).min(LANES);
        let first = from.data.as_ptr().wrapping_add((lines.start + done) * from.row + inner.start * from.col);
        let write = |p: usize, v: __m512i| {
            // SAFETY: the place of this pair of these lines in their panel, or in their two.
            unsafe {
                let at = to.add((done / width * pairs + p) * width + done % width);
                if width != ROWS {
                    _mm512_storeu_si512(at.cast(), v);
                } else {
                    _mm256_storeu_si256(at.cast(), _mm512_castsi512_si256(v));
                    if done + ROWS < all {
                        _mm256_storeu_si256(at.add(pairs * ROWS).cast(), _mm512_extracti64x4_epi64::<1>(v));
                    }
                }
            }
        };
        // SAFETY: `have` lines of so many elements lie there.
        unsafe {
            match (from.row, from.col) {
                (_, 1) => along(first, from.row, have, inner.len(), write),
                (1, step) => across(first, step, have, inner.len(), write),
                (row, step) => apart(first, [row, step], have, inner.len(), write),
            }
        }
    }
}

/// Lines whose elements lie in a row.
///
/// # Safety
/// The processor has the instructions; `have` lines of n elements, at most 16, lie `line` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn along(first: *const f32, line: usize, have: usize, n: usize, write: impl Fn(usize, __m512i)) {
    for e in (0..n).step_by(2 * LANES) {
        let (low, high) = (mask(n - e), mask((n - e).saturating_sub(LANES)));
        let mut lines = [_mm512_setzero_si512(); LANES];
        for (l, v) in lines.iter_mut().enumerate().take(have) {
            let at = first.wrapping_add(l * line + e);
            // SAFETY: elements beyond the line's are masked off.
            *v =
                unsafe { rounded(_mm512_maskz_loadu_ps(low, at), _mm512_maskz_loadu_ps(high, at.wrapping_add(LANES))) };
        }
        let pairs = transposed(lines);
        pairs.into_iter().enumerate().take((n - e).div_ceil(2)).for_each(|(p, v)| write(e / 2 + p, v));
    }
}

/// Lines that lie side by side: one element of all is a row of memory.
///
/// # Safety
/// The processor has the instructions; n rows of `have` elements, at most 16, lie `step` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn across(first: *const f32, step: usize, have: usize, n: usize, write: impl Fn(usize, __m512i)) {
    const ORDER: [u16; 2 * LANES] = {
        let mut order = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            (order[2 * i], order[2 * i + 1]) = (i as u16, (LANES + i) as u16);
            i += 1;
        }
        order
    };
    // SAFETY: elements beyond the rows' are masked off.
    unsafe {
        let (order, have) = (_mm512_loadu_si512(ORDER.as_ptr().cast()), mask(have));
        for p in 0..n.div_ceil(2) {
            let second = if 2 * p + 1 < n { have } else { 0 };
            let low = _mm512_maskz_loadu_ps(have, first.wrapping_add(2 * p * step));
            let high = _mm512_maskz_loadu_ps(second, first.wrapping_add((2 * p + 1) * step));
            write(p, _mm512_permutexvar_epi16(order, rounded(low, high)));
        }
    }
}

/// Lines `apart[0]` apart whose elements are `apart[1]` apart.
///
/// # Safety
/// The processor has the instructions; `have` lines of n elements, at most 16, lie there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn apart(first: *const f32, [row, step]: [usize; 2], have: usize, n: usize, write: impl Fn(usize, __m512i)) {
    for p in 0..n.div_ceil(2) {
        let mut pairs = [0f32; 2 * LANES];
        for (i, v) in pairs.iter_mut().enumerate().take(2 * have).filter(|(i, _)| 2 * p + i % 2 < n) {
            // SAFETY: line i / 2 has an element 2 p + i % 2.
            *v = unsafe { *first.wrapping_add(i / 2 * row + (2 * p + i % 2) * step) };
        }
        // SAFETY: both halves lie within the pairs.
        let (low, high) = unsafe { (_mm512_loadu_ps(pairs.as_ptr()), _mm512_loadu_ps(pairs.as_ptr().add(LANES))) };
        write(p, rounded(low, high));
    }
}

/// Two vectors as bf16, the first in the lower half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 512 bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The first `n` lanes.
#[inline]
fn mask(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// The transpose of 16 by 16 numbers of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = lines;
    for i in 0..LANES / 2 {
        pairs[2 * i] = _mm512_unpacklo_epi32(lines[2 * i], lines[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(lines[2 * i], lines[2 * i + 1]);
    }
    // fours[4 i + c] has, in its quarter q, column 4 q + c of lines 4 i to 4 i + 3.
    let mut fours = pairs;
    for i in 0..LANES / 4 {
        for j in 0..2 {
            fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
            fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
        }
    }
    let mut columns = fours;
    for c in 0..LANES / 4 {
        let [a, b, d, e] = [0, 4, 8, 12].map(|line| fours[line + c]);
        let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(d, e)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(d, e)];
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}

/// What becomes of sums: keep · what is there + scale · sum + bias of the column.
pub(super) type End<'a> = (f32, f32, Option<&'a [f32]>);

/// `size` rows and columns of the result, from packed panels; those of B are `width` columns wide, at most 64.
///
/// # Safety
/// The processor has the instructions; there are panels of so many pairs for these rows and columns; `c` points to them, in rows `c_row`
/// apart that nobody else accesses, initialised if they are kept.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn block(
    pairs: usize,
    a: *const u32,
    b: *const u32,
    width: usize,
    (c, c_row): (*mut f32, usize),
    [rows, columns]: [usize; 2],
    (keep, scale, bias): End,
) {
    assert!(bias.is_none_or(|bias| bias.len() >= columns), "bias too short");
    for j in (0..columns).step_by(width) {
        let n = width.min(columns - j);
        let b = b.wrapping_add(j * pairs);
        let end = (keep, scale, bias.map(|bias| &bias[j..j + n]));
        for i in (0..rows).step_by(ROWS) {
            let m = ROWS.min(rows - i);
            let a = a.wrapping_add(i * pairs);
            let c = c.wrapping_add(i * c_row + j);
            macro_rules! tile {
                ($rows:literal, $vectors:literal, $first:expr, $m:expr) => {
                    // SAFETY: the panels are there, and so are these rows of n elements of the result.
                    unsafe {
                        let (a, c) = (a.wrapping_add($first), (c.wrapping_add($first * c_row), c_row));
                        tile::<$rows, $vectors>(pairs, a, (b, width), c, [$m, n], end)
                    }
                };
            }
            // Four vectors wide, a tile of eight rows has more sums than there are registers.
            match (m, n.div_ceil(LANES)) {
                (5.., 4) => {
                    tile!(4, 4, 0, 4);
                    tile!(4, 4, 4, m - 4);
                }
                (5.., 3) => tile!(8, 3, 0, m),
                (5.., 2) => tile!(8, 2, 0, m),
                (5.., _) => tile!(8, 1, 0, m),
                (2.., 4) => tile!(4, 4, 0, m),
                (2.., 3) => tile!(4, 3, 0, m),
                (2.., 2) => tile!(4, 2, 0, m),
                (2.., _) => tile!(4, 1, 0, m),
                (_, 4) => tile!(1, 4, 0, m),
                (_, 3) => tile!(1, 3, 0, m),
                (_, 2) => tile!(1, 2, 0, m),
                (_, _) => tile!(1, 1, 0, m),
            }
        }
    }
}

/// One tile, of at most R rows and 16 V columns.
///
/// # Safety
/// As [`block`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const R: usize, const V: usize>(
    pairs: usize,
    mut a: *const u32,
    (mut b, width): (*const u32, usize),
    (c, c_row): (*mut f32, usize),
    [rows, columns]: [usize; 2],
    (keep, scale, bias): End,
) {
    debug_assert!(rows <= R && columns <= V * LANES && R <= ROWS && V * LANES <= width);
    // SAFETY: both are 512 bits.
    let pair = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    for _ in 0..pairs {
        let mut right = [_mm512_setzero_si512(); V];
        for (v, right) in right.iter_mut().enumerate() {
            // SAFETY: this pair of the panel.
            *right = unsafe { _mm512_loadu_si512(b.add(v * LANES).cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let left = pair(_mm512_set1_epi32(unsafe { *a.add(r) } as i32));
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = _mm512_dpbf16_ps(*sum, left, pair(right));
            }
        }
        (a, b) = (a.wrapping_add(ROWS), b.wrapping_add(width));
    }
    for (r, sums) in sums.iter().enumerate().take(rows) {
        for (v, sum) in sums.iter().enumerate() {
            let at = c.wrapping_add(r * c_row + v * LANES);
            let lanes = mask(columns.saturating_sub(v * LANES));
            let mut y = _mm512_mul_ps(*sum, _mm512_set1_ps(scale));
            // SAFETY: row r of the result, and the bias, have so many elements; what lies beyond is masked off.
            unsafe {
                if let Some(bias) = bias {
                    y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, bias.as_ptr().wrapping_add(v * LANES)));
                }
                if keep != 0. {
                    y = _mm512_fmadd_ps(_mm512_set1_ps(keep), _mm512_maskz_loadu_ps(lanes, at), y);
                }
                _mm512_mask_storeu_ps(at, lanes, y);
            }
        }
    }
}
