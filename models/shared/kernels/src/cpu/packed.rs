//! Matrices of 4 or 8 bits an element, each group of elements with a scale and an offset, as quantized checkpoints have them. Products with
//! few rows read them as they are; for those with many, a panel of rows at a time becomes f32.
//!
//! Four rows lie interleaved: a word of 32 bits has, of each, two elements of 4 bits (16 columns apart) or one of 8. A shift and a mask put an
//! element's bits into the highest bits of the mantissa of a number between 1 and 2, which is exact; 1.5 less is the element, over 16 or 256.

use candle_core::{Result, bail};
use pulp::{Simd, WithSimd};

use super::buffer::Pointer;
use super::matmul::{Blend, PARALLEL, matmul_into};
use super::product::Matrix;
use super::{parallel, simd};

/// Rows that are interleaved.
const ROWS: usize = 4;
/// Words of the elements of a group in these rows.
const WORDS: usize = 16;
/// Up to so many rows, a product reads the packed elements, and a row of the result does not depend on how many there are.
const FEW: usize = 256;
/// Rows that become f32 at a time.
const PANEL: usize = 512;

/// Bits of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Elements from -8 to 7, in groups of 32.
    Four,
    /// Elements from -128 to 127, in groups of 16.
    Eight,
}

impl Bits {
    /// Elements of a group: consecutive ones of a row.
    pub const fn group(self) -> usize {
        match self {
            Self::Four => 2 * WORDS,
            Self::Eight => WORDS,
        }
    }

    /// What elements are multiples of.
    const fn step(self) -> f32 {
        match self {
            Self::Four => 1. / 16.,
            Self::Eight => 1. / 256.,
        }
    }
}

/// A matrix of few bits an element.
#[derive(Clone, Debug)]
pub struct Packed {
    bits: Bits,
    rows: usize,
    columns: usize,
    /// (rows / 4, groups, 16 words)
    words: Vec<u32>,
    /// (rows / 4, groups, 4 rows), over the elements' step.
    scales: Vec<f32>,
    /// Laid out as the scales; empty if all are zero.
    offsets: Vec<f32>,
}

impl Packed {
    /// Of a row-major matrix (rows, columns): element e of group g is `scales[g] * codes[e] + offsets[g]`. Without `offsets`, all are zero.
    ///
    /// # Errors
    /// Columns that are no whole groups, slices of other lengths, or codes of more bits.
    pub fn new(bits: Bits, [rows, columns]: [usize; 2], codes: &[i8], scales: &[f32], offsets: &[f32]) -> Result<Self> {
        let group = bits.group();
        let groups = columns / group;
        let fits = groups > 0
            && columns.is_multiple_of(group)
            && rows.checked_mul(columns) == Some(codes.len())
            && scales.len() == rows * groups
            && (offsets.is_empty() || offsets.len() == scales.len());
        if !fits {
            bail!(
                "packed: {} elements, {} scales and {} offsets are no {rows} rows of {columns} in groups of {group}",
                codes.len(),
                scales.len(),
                offsets.len()
            )
        }
        if let Some(code) = codes.iter().find(|code| bits == Bits::Four && !(-8..8).contains(*code)) {
            bail!("packed: {code} is no number of 4 bits")
        }
        let blocks = rows.div_ceil(ROWS);
        let plain = offsets.iter().all(|o| *o == 0.);
        let mut packed = Self {
            bits,
            rows,
            columns,
            words: vec![0; blocks * groups * WORDS],
            scales: vec![0.; blocks * groups * ROWS],
            offsets: vec![0.; if plain { 0 } else { blocks * groups * ROWS }],
        };
        for row in 0..rows {
            for g in 0..groups {
                let unit = row / ROWS * groups + g;
                packed.scales[unit * ROWS + row % ROWS] = scales[row * groups + g] / bits.step();
                if !plain {
                    packed.offsets[unit * ROWS + row % ROWS] = offsets[row * groups + g];
                }
                let words = &mut packed.words[unit * WORDS..][..WORDS];
                let of_group = &codes[row * columns + g * group..][..group];
                for (e, code) in of_group.iter().enumerate() {
                    let (code, at) = match bits {
                        Bits::Four => ((code + 8) as u8 & 15, 8 * (row % ROWS) + 4 * (e / WORDS)),
                        Bits::Eight => ((*code as u8) ^ 128, 8 * (row % ROWS)),
                    };
                    words[e % WORDS] |= u32::from(code) << at;
                }
            }
        }
        Ok(packed)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        4 * (self.words.len() + self.scales.len() + self.offsets.len())
    }

    fn groups(&self) -> usize {
        self.columns / self.bits.group()
    }

    /// These rows as f32, row-major.
    ///
    /// # Errors
    /// Rows that there are not; a SIMD level that this machine lacks.
    pub fn unpacked(&self, rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
        if rows.start > rows.end || rows.end > self.rows {
            bail!("packed: rows {rows:?} are not among {}", self.rows)
        }
        let level = simd::level()?;
        let mut out = vec![0.; rows.len() * self.columns];
        let to = Pointer::of(&mut out);
        /// Elements that a task makes.
        const TASK: usize = 1 << 16;
        parallel::chunks(rows.len(), (TASK / self.columns.max(1)).max(1), |part| {
            let first = rows.start + part.start;
            // SAFETY: the chunks of rows are disjoint and within the buffer.
            let out =
                unsafe { std::slice::from_raw_parts_mut(to.at(part.start * self.columns), part.len() * self.columns) };
            level.run(Unpack { packed: self, first, out });
        });
        Ok(out)
    }

    /// x (m, columns) times the transpose of this: (m, rows).
    ///
    /// # Errors
    /// As [`Packed::unpacked`].
    ///
    /// # Panics
    /// An `x` that is no rows of these columns.
    pub fn product(&self, m: usize, x: &[f32]) -> Result<Vec<f32>> {
        let (n, k) = (self.rows, self.columns);
        assert!(m.checked_mul(k) == Some(x.len()), "sizes do not fit");
        let mut out = vec![0.; m * n];
        let to = Pointer::of(&mut out);
        if m > FEW {
            for first in (0..n).step_by(PANEL) {
                let panel = self.unpacked(first..n.min(first + PANEL))?;
                let (x, w) = (Matrix::rows(x, k), Matrix::transposed(&panel, k));
                // SAFETY: the panel's columns of the result, which nobody else accesses.
                unsafe { matmul_into([m, panel.len() / k.max(1), k], x, w, to.part(first), n, Blend::REPLACE) };
            }
            return Ok(out);
        }
        let level = simd::level()?;
        // An element costs about a quarter of what a multiplication of f32 does.
        let least = (PARALLEL / 2).checked_div(m.div_ceil(4) * k * ROWS).unwrap_or(1);
        parallel::evenly(n.div_ceil(ROWS), least, |blocks| {
            level.run(FewRows { packed: self, m, x, blocks, to });
        });
        Ok(out)
    }

    /// dz (m, rows) times this: (m, columns).
    ///
    /// # Errors
    /// As [`Packed::unpacked`].
    ///
    /// # Panics
    /// A `dz` that is no rows of as many as there are rows here.
    pub fn back(&self, m: usize, dz: &[f32]) -> Result<Vec<f32>> {
        let (n, k) = (self.rows, self.columns);
        assert!(m.checked_mul(n) == Some(dz.len()), "sizes do not fit");
        let mut out = vec![0.; m * k];
        let to = Pointer::of(&mut out);
        for first in (0..n).step_by(PANEL) {
            let panel = self.unpacked(first..n.min(first + PANEL))?;
            let rows = panel.len() / k.max(1);
            let blend = if first == 0 { Blend::REPLACE } else { Blend::ADD };
            let dz = Matrix { data: dz.get(first..).unwrap_or_default(), row: n, col: 1 };
            // SAFETY: the buffer has m rows of k elements, all initialised.
            unsafe { matmul_into([m, k, rows], dz, Matrix::rows(&panel, k), to, k, blend) };
        }
        Ok(out)
    }

    /// One below the other.
    ///
    /// # Errors
    /// Other columns or bits; rows, but for the last's, that are no multiple of four.
    pub fn stacked(parts: &[&Self]) -> Result<Self> {
        let Some(first) = parts.first() else { bail!("packed: nothing to stack") };
        let even = parts.iter().rev().skip(1).all(|p| p.rows.is_multiple_of(ROWS));
        if !even || parts.iter().any(|p| p.columns != first.columns || p.bits != first.bits) {
            bail!("packed: matrices of other columns or bits, or of rows that are no multiple of {ROWS}, do not stack")
        }
        let (bits, columns) = (first.bits, first.columns);
        let mut all = Self { bits, rows: 0, columns, words: vec![], scales: vec![], offsets: vec![] };
        let offset = parts.iter().any(|p| !p.offsets.is_empty());
        for part in parts {
            all.rows += part.rows;
            all.words.extend(&part.words);
            all.scales.extend(&part.scales);
            match part.offsets.is_empty() && offset {
                true => all.offsets.resize(all.scales.len(), 0.),
                false => all.offsets.extend(&part.offsets),
            }
        }
        Ok(all)
    }
}

/// The elements of a row of four in one half of a group, times their step.
#[inline(always)]
fn elements<S: Simd, const FOUR: bool>(s: S, words: S::u32s, row: usize, half: usize) -> S::f32s {
    let c = |v: u32| s.splat_u32s(v);
    let (from, to, mask) = match FOUR {
        true => (8 * row + 4 * half, 19, 0x0078_0000),
        false => (8 * row, 15, 0x007f_8000),
    };
    let moved = match from < to {
        true => s.wrapping_dyn_shl_u32s(words, c((to - from) as u32)),
        false => s.wrapping_dyn_shr_u32s(words, c((from - to) as u32)),
    };
    let between = s.or_u32s(s.and_u32s(moved, c(mask)), c(0x3f80_0000));
    s.sub_f32s(s.transmute_f32s_u32s(between), s.splat_f32s(1.5))
}

/// Rows from `first` on, as f32.
struct Unpack<'a> {
    packed: &'a Packed,
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match self.packed.bits {
            Bits::Four => self.unpack::<S, true>(s),
            Bits::Eight => self.unpack::<S, false>(s),
        }
    }
}

impl Unpack<'_> {
    #[inline(always)]
    fn unpack<S: Simd, const FOUR: bool>(self, s: S) {
        let Self { packed, first, out } = self;
        let (groups, group) = (packed.groups(), packed.bits.group());
        if packed.columns == 0 {
            return;
        }
        for (i, out) in out.chunks_exact_mut(packed.columns).enumerate() {
            let row = first + i;
            for (g, out) in out.chunks_exact_mut(group).enumerate() {
                let unit = row / ROWS * groups + g;
                let scale = s.splat_f32s(packed.scales[unit * ROWS + row % ROWS]);
                let offset = s.splat_f32s(packed.offsets.get(unit * ROWS + row % ROWS).copied().unwrap_or(0.));
                let words = &packed.words[unit * WORDS..][..WORDS];
                for (half, out) in out.chunks_exact_mut(WORDS).enumerate() {
                    for (words, out) in words.chunks_exact(S::U32_LANES).zip(out.chunks_exact_mut(S::F32_LANES)) {
                        let v = elements::<S, FOUR>(s, s.partial_load_u32s(words), row % ROWS, half);
                        s.partial_store_f32s(out, s.mul_add_e_f32s(v, scale, offset));
                    }
                }
            }
        }
    }
}

/// Some columns of a product, as dot products.
struct FewRows<'a> {
    packed: &'a Packed,
    m: usize,
    x: &'a [f32],
    /// Of four rows.
    blocks: std::ops::Range<usize>,
    to: Pointer,
}

impl WithSimd for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match (self.packed.bits, self.packed.offsets.is_empty()) {
            (Bits::Four, false) => self.all::<S, true, true>(s),
            (Bits::Four, true) => self.all::<S, true, false>(s),
            (Bits::Eight, false) => self.all::<S, false, true>(s),
            (Bits::Eight, true) => self.all::<S, false, false>(s),
        }
    }
}

impl FewRows<'_> {
    #[inline(always)]
    fn all<S: Simd, const FOUR: bool, const OFFSETS: bool>(&self, s: S) {
        // As many sums as there are registers for.
        let wide = S::F32_LANES >= 16;
        for block in self.blocks.clone() {
            let mut i = 0;
            while i < self.m {
                // SAFETY: rows i.. of x are there, and this task alone writes these columns of the result.
                i += unsafe {
                    match self.m - i {
                        n if n >= 8 && wide => {
                            self.dots::<S, 8, 2, FOUR, OFFSETS>(s, block, 0, i);
                            self.dots::<S, 8, 2, FOUR, OFFSETS>(s, block, 2, i);
                            8
                        }
                        n if n >= 4 => {
                            self.dots::<S, 4, 2, FOUR, OFFSETS>(s, block, 0, i);
                            self.dots::<S, 4, 2, FOUR, OFFSETS>(s, block, 2, i);
                            4
                        }
                        n if n >= 2 => {
                            self.dots::<S, 2, 4, FOUR, OFFSETS>(s, block, 0, i);
                            2
                        }
                        _ => {
                            self.dots::<S, 1, 4, FOUR, OFFSETS>(s, block, 0, i);
                            1
                        }
                    }
                };
            }
        }
    }

    /// R rows of a block from `first` on, with M rows of x from `i` on.
    ///
    /// # Safety
    /// M rows of x from i on are there, and nobody else accesses the block's columns of the result.
    #[inline(always)]
    unsafe fn dots<S: Simd, const M: usize, const R: usize, const FOUR: bool, const OFFSETS: bool>(
        &self,
        s: S,
        block: usize,
        first: usize,
        i: usize,
    ) {
        let Self { packed, x, to, .. } = *self;
        let (n, k, groups, group) = (packed.rows, packed.columns, packed.groups(), packed.bits.group());
        let words = packed.words[block * groups * WORDS..][..groups * WORDS].as_ptr();
        let scales = packed.scales[block * groups * ROWS..][..groups * ROWS].as_ptr();
        let offsets = if OFFSETS { packed.offsets[block * groups * ROWS..][..groups * ROWS].as_ptr() } else { scales };
        let x = x[i * k..][..M * k].as_ptr();
        let mut all = [[s.splat_f32s(0.); M]; R];
        for g in 0..groups {
            // SAFETY: a group has a scale, and an offset, for each of the four rows.
            let of_rows =
                |of: *const f32| unsafe { std::array::from_fn(|row| s.splat_f32s(*of.add(g * ROWS + first + row))) };
            let (scales, offsets): ([S::f32s; R], [S::f32s; R]) = (of_rows(scales), of_rows(offsets));
            for lane in (0..WORDS).step_by(S::U32_LANES) {
                // SAFETY: a group has 16 words, and x as many elements for each of its halves.
                unsafe {
                    let words = words.add(g * WORDS + lane).cast::<S::u32s>().read_unaligned();
                    for half in 0..if FOUR { 2 } else { 1 } {
                        let mut xs = [s.splat_f32s(0.); M];
                        for (a, to) in xs.iter_mut().enumerate() {
                            let at = a * k + g * group + half * WORDS + lane;
                            *to = x.add(at).cast::<S::f32s>().read_unaligned();
                        }
                        for row in 0..R {
                            let v = elements::<S, FOUR>(s, words, first + row, half);
                            let v = match OFFSETS {
                                true => s.mul_add_e_f32s(v, scales[row], offsets[row]),
                                false => s.mul_f32s(v, scales[row]),
                            };
                            for (all, x) in all[row].iter_mut().zip(xs) {
                                *all = s.mul_add_e_f32s(v, x, *all);
                            }
                        }
                    }
                }
            }
        }
        for (row, all) in all.into_iter().enumerate() {
            let column = block * ROWS + first + row;
            if column >= n {
                break;
            }
            for (a, all) in all.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { to.at((i + a) * n + column).write(s.reduce_sum_f32s(all)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{levels, with_level};
    use crate::random::{Purpose, Stream};

    /// A matrix of random elements, and the same in f64.
    fn case(bits: Bits, rows: usize, columns: usize, with_offsets: bool) -> Result<(Packed, Vec<f64>)> {
        let mut stream = Stream::new(5, Purpose::Simulation, 0, 0);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| stream.normal() as f32).collect() };
        let (group, most) = (bits.group(), if bits == Bits::Four { 8. } else { 128. });
        let codes: Vec<i8> =
            draw(rows * columns).iter().map(|v| (v * 0.4 * most).clamp(-most, most - 1.) as i8).collect();
        let scales = draw(rows * columns / group);
        let offsets = if with_offsets { draw(scales.len()) } else { vec![] };
        let of = |(e, code): (usize, &i8)| {
            let offset = offsets.get(e / group).map_or(0., |o| f64::from(*o));
            f64::from(*code) * f64::from(scales[e / group]) + offset
        };
        let values = codes.iter().enumerate().map(of).collect();
        Ok((Packed::new(bits, [rows, columns], &codes, &scales, &offsets)?, values))
    }

    #[test]
    fn elements_and_products_are_those_of_the_matrix_at_every_level() -> Result<()> {
        let mut stream = Stream::new(6, Purpose::Simulation, 0, 0);
        for bits in [Bits::Four, Bits::Eight] {
            for (rows, columns, with_offsets) in [(1, 32, true), (7, 64, false), (12, 96, true), (1030, 32, true)] {
                let (packed, w) = case(bits, rows, columns, with_offsets)?;
                assert_eq!((packed.rows(), packed.columns()), (rows, columns));
                for level in levels() {
                    let all = with_level(level, || packed.unpacked(0..rows))?;
                    for (got, want) in all.iter().zip(&w) {
                        assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs().max(1.), "{level:?} {got} {want}");
                    }
                    for m in [1, 3, 4, 6, 8, 13, FEW + 1] {
                        let x: Vec<f32> = (0..m * columns).map(|_| stream.normal() as f32).collect();
                        let y = with_level(level, || packed.product(m, &x))?;
                        assert_eq!(y.len(), m * rows);
                        if m <= FEW {
                            // To the bit: a row does not depend on the others.
                            let last = with_level(level, || packed.product(1, &x[(m - 1) * columns..]))?;
                            assert_eq!(last, y[(m - 1) * rows..], "{bits:?} {level:?} m {m}");
                        }
                        for (e, got) in y.iter().enumerate() {
                            let (i, j) = (e / rows, e % rows);
                            let (mut want, mut size) = (0., 1.);
                            for c in 0..columns {
                                let term = f64::from(x[i * columns + c]) * w[j * columns + c];
                                (want, size) = (want + term, size + term.abs());
                            }
                            assert!(
                                (f64::from(*got) - want).abs() < 1e-6 * size,
                                "{bits:?} {level:?} m {m}: {got} {want}"
                            );
                        }
                        let back = with_level(level, || packed.back(m, &y))?;
                        let (mut want, mut size) = (0., 1.);
                        for j in 0..rows {
                            let term = f64::from(y[(m - 1) * rows + j]) * w[j * columns + 5];
                            (want, size) = (want + term, size + term.abs());
                        }
                        let got = f64::from(back[(m - 1) * columns + 5]);
                        assert!((got - want).abs() < 1e-6 * size, "{bits:?} {level:?} m {m}: {got} {want}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn stacked_matrices_are_one_below_the_other() -> Result<()> {
        let (a, b) = (case(Bits::Four, 8, 64, true)?.0, case(Bits::Four, 3, 64, false)?.0);
        let both = Packed::stacked(&[&a, &b])?;
        assert_eq!(both.unpacked(0..11)?, [a.unpacked(0..8)?, b.unpacked(0..3)?].concat());
        assert!(Packed::stacked(&[&b, &a]).is_err());
        assert!(Packed::stacked(&[&a, &case(Bits::Eight, 4, 64, true)?.0]).is_err());
        assert!(both.unpacked(3..12).is_err());
        Ok(())
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        assert!(Packed::new(Bits::Four, [1, 32], &[8; 32], &[1.], &[]).is_err());
        for (columns, codes, scales, offsets) in
            [(0, 0, 0, 0), (33, 33, 1, 0), (32, 31, 1, 0), (32, 32, 2, 0), (32, 32, 1, 2)]
        {
            let made = Packed::new(Bits::Four, [1, columns], &vec![0; codes], &vec![0.; scales], &vec![0.; offsets]);
            assert!(made.is_err());
        }
    }
}
