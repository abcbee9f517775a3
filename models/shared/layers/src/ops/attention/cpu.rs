use candle_core::Result;
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::bf16::Tiles;
use zoo_kernels::cpu::product::{Matrix, Start, Term, product};
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector, with_scratch};

use super::narrow::Narrow;
use crate::ops::dropout::{Dropout, range};

/// Keys of a tile: what one group of dropout draws covers.
pub(super) const KEYS: usize = 64;
/// With fewer heads of keys than this in a batch, the queries are shared among tasks.
const TASKS: usize = 8;

/// Sizes.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Geometry {
    pub(in crate::ops) batch: usize,
    pub(in crate::ops) heads: usize,
    /// Heads of keys and values, which groups of as many heads share.
    pub(in crate::ops) key_heads: usize,
    pub(in crate::ops) tq: usize,
    pub(in crate::ops) tk: usize,
    pub(in crate::ops) d: usize,
}

impl Geometry {
    /// Queries of a tile: few where there are few, so that causal attention can leave out more.
    pub(super) fn queries(&self) -> usize {
        if self.tq <= 256 { 32 } else { 64 }
    }

    /// The heads that share one of keys and values.
    fn group(&self, key_head: usize) -> std::ops::Range<usize> {
        let size = self.heads / self.key_heads;
        key_head * size..(key_head + 1) * size
    }

    /// Tasks for each head of keys: a matter of the shape alone, so that sums do not depend on the machine.
    fn parts(&self) -> usize {
        let heads = (self.batch * self.key_heads).max(1);
        TASKS.div_ceil(heads).min(self.tq.div_ceil(self.queries())).max(1)
    }

    /// The queries of a part: whole tiles.
    fn part(&self, part: usize) -> std::ops::Range<usize> {
        let tiles = self.tq.div_ceil(self.queries());
        let at = |p: usize| (p * tiles / self.parts() * self.queries()).min(self.tq);
        at(part)..at(part + 1)
    }
}

/// What happens to the scores.
pub(in crate::ops) struct Rule<'a> {
    pub(in crate::ops) causal: bool,
    pub(in crate::ops) scale: f32,
    pub(in crate::ops) dropout: Option<&'a Dropout>,
}

/// Matrices by batch and head: where each starts, and how far apart its rows are.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Heads<'a> {
    pub(in crate::ops) data: &'a [f32],
    pub(in crate::ops) batch: usize,
    pub(in crate::ops) head: usize,
    pub(in crate::ops) row: usize,
}

impl<'a> Heads<'a> {
    /// (batch, t, width), in which the heads of a place lie side by side, `d` wide.
    pub(in crate::ops) fn side_by_side(data: &'a [f32], t: usize, width: usize, d: usize) -> Self {
        Self { data, batch: t * width, head: d, row: width }
    }

    fn at(&self, b: usize, h: usize) -> &'a [f32] {
        &self.data[(b * self.batch + h * self.head).min(self.data.len())..]
    }

    /// The same positions in other memory.
    pub(in crate::ops) fn onto(&self, to: Pointer) -> HeadsMut {
        HeadsMut { to, batch: self.batch, head: self.head, row: self.row }
    }
}

/// [`Heads`] that are written. Matrices of different heads do not overlap.
#[derive(Clone, Copy)]
pub(in crate::ops) struct HeadsMut {
    pub(in crate::ops) to: Pointer,
    pub(in crate::ops) batch: usize,
    pub(in crate::ops) head: usize,
    pub(in crate::ops) row: usize,
}

impl HeadsMut {
    /// # Safety
    /// The matrix of this batch and head lies within the memory.
    unsafe fn at(&self, b: usize, h: usize, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.to.at(b * self.batch + h * self.head + row * self.row) }
    }
}

/// O, laid out as `like` (whose elements are all those of its heads), and of each batch, head and query the two parts of
/// L: the largest score and the logarithm of Σ exp of what the others are below it.
pub(in crate::ops) fn forward(
    g: Geometry,
    rule: &Rule,
    q: Heads,
    k: Heads,
    v: Heads,
    mask: Option<Heads>,
    like: Heads,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let level = simd::level()?;
    let n = g.batch * g.heads * g.tq;
    let (mut out, mut logs) = (Buffer::new(n * g.d), Buffer::new(2 * n));
    let out_heads = HeadsMut { to: out.pointer(), batch: like.batch, head: like.head, row: like.row };
    let to_logs = logs.pointer();
    let tiles = Tiles::new();
    // Kᵀ, or what is packed.
    let size = if tiles.is_some() { Narrow::len(g) } else { g.d * g.tk };
    parallel::for_each(g.batch * g.key_heads * g.parts(), |task| {
        let (head, part) = (task / g.parts(), task % g.parts());
        let (b, key_head) = (head / g.key_heads, head % g.key_heads);
        let tile = g.queries() * KEYS;
        with_scratch(size + tile + 2 * g.queries(), |scratch| {
            let (kt, scratch) = scratch.split_at_mut(size);
            let (s, rows) = scratch.split_at_mut(tile);
            let (out, logs) = (out_heads, to_logs);
            level.run(ForwardPart { g, rule, b, key_head, q, k, v, mask, out, logs, part, tiles, kt, s, rows });
        });
    });
    // SAFETY: the parts of all heads cover all queries, and each writes output and logarithm of its own.
    Ok(unsafe { (out.finish(), logs.finish()) })
}

struct ForwardPart<'a> {
    g: Geometry,
    rule: &'a Rule<'a>,
    b: usize,
    key_head: usize,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    mask: Option<Heads<'a>>,
    out: HeadsMut,
    logs: Pointer,
    part: usize,
    tiles: Option<Tiles>,
    /// Kᵀ (d, tk), or what is packed.
    kt: &'a mut [f32],
    /// A tile of scores.
    s: &'a mut [f32],
    /// Running maximum and sum of each query of a tile.
    rows: &'a mut [f32],
}

/// The transpose of (t, d) rows that are `row` apart.
#[inline(always)]
fn transpose(from: &[f32], row: usize, t: usize, d: usize, to: &mut [f32]) {
    // By pieces that stay in the first-level cache.
    for first in (0..t).step_by(64) {
        let last = t.min(first + 64);
        for e in 0..d {
            let to = &mut to[e * t + first..e * t + last];
            for (i, to) in to.iter_mut().enumerate() {
                *to = from[(first + i) * row + e];
            }
        }
    }
}

/// Tiles of scores as both passes see them.
struct Scores<'a> {
    g: Geometry,
    rule: &'a Rule<'a>,
    q: &'a [f32],
    q_row: usize,
    mask: Option<(&'a [f32], usize)>,
}

impl Rule<'_> {
    /// The keys that a query sees.
    #[inline(always)]
    fn seen(&self, g: Geometry, query: usize) -> usize {
        if self.causal { query + 1 + g.tk - g.tq } else { g.tk }
    }

    /// The keys that any query of a range sees.
    fn seen_by(&self, g: Geometry, queries: &std::ops::Range<usize>) -> usize {
        if queries.is_empty() { 0 } else { self.seen(g, queries.end - 1) }
    }
}

impl<'a> Scores<'a> {
    fn of(g: Geometry, rule: &'a Rule<'a>, (b, h): (usize, usize), q: Heads<'a>, mask: Option<Heads<'a>>) -> Self {
        Self { g, rule, q: q.at(b, h), q_row: q.row, mask: mask.map(|m| (m.at(b, h), m.row)) }
    }

    /// The keys that a query sees.
    #[inline(always)]
    fn seen(&self, query: usize) -> usize {
        self.rule.seen(self.g, query)
    }

    /// Scaled and masked scores of `m` queries from `q0` on and `n` keys from `k0` on, without the causal mask, in rows of
    /// [`KEYS`]; without packed factors, from Kᵀ.
    ///
    /// # Safety
    /// `s` has `m` rows, and queries and keys lie within the matrices.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        simd: S,
        (kt, narrow): (&[f32], Option<&Narrow>),
        [q0, m]: [usize; 2],
        [k0, n]: [usize; 2],
        s: *mut f32,
    ) {
        let (g, tk) = (self.g, self.g.tk);
        let scale = simd.splat_f32s(self.rule.scale);
        // SAFETY: the caller's promise.
        unsafe {
            match narrow {
                Some(narrow) => narrow.scores([m, n], k0, s),
                None => {
                    let a = Matrix { data: &self.q[q0 * self.q_row..], row: self.q_row, col: 1 };
                    let terms = [Term { a, b: &kt[k0..], b_row: tk, k: g.d }];
                    product(simd, m, n, Start::Zero, &terms, s, KEYS);
                }
            }
            for i in 0..m {
                let row = s.add(i * KEYS);
                let mask = self.mask.map(|(mask, row)| mask[(q0 + i) * row + k0..][..n].as_ptr());
                for j in (0..n).step_by(S::F32_LANES) {
                    let mut v = simd.mul_f32s(vector::read(simd, row, j, n), scale);
                    if let Some(mask) = mask {
                        v = simd.add_f32s(v, vector::read(simd, mask, j, n));
                    }
                    vector::write(simd, row, j, n, v);
                }
            }
        }
    }

    /// The number of the score of (query, key) among all, which decides its dropout.
    fn number(&self, b: usize, h: usize, query: usize, key: usize) -> usize {
        ((b * self.g.heads + h) * self.g.tq + query) * self.g.tk + key
    }
}

impl WithSimd for ForwardPart<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { g, rule, b, key_head, q, k, v, mask, out, logs, part, tiles, kt, s: tile, rows } = self;
        let (lanes, d) = (S::F32_LANES, g.d);
        let (v, v_row) = (v.at(b, key_head), v.row);
        let (maxima, sums) = rows.split_at_mut(g.queries());
        let range_of = g.part(part);
        let end = rule.seen_by(g, &range_of);
        let (kt, mut narrow) = match tiles {
            Some(tiles) => {
                let mut narrow = Narrow::new(tiles, g, kt);
                narrow.keys((k.at(b, key_head), k.row), end);
                narrow.rows_of_keys((v, v_row), end);
                (&[][..], Some(narrow))
            }
            None => {
                transpose(k.at(b, key_head), k.row, g.tk, d, kt);
                (&*kt, None)
            }
        };
        let tiles_of = |h| range_of.clone().step_by(g.queries()).map(move |q0| (h, q0));
        for (h, q0) in g.group(key_head).flat_map(tiles_of) {
            let scores = Scores::of(g, rule, (b, h), q, mask);
            let m = g.queries().min(range_of.end - q0);
            if let Some(narrow) = &mut narrow {
                narrow.queries((&scores.q[q0 * scores.q_row..], scores.q_row), m, false);
            }
            maxima.fill(f32::NEG_INFINITY);
            sums.fill(0.);
            // SAFETY: the rows of the output and the logarithms of these queries belong to this task; the tile has room
            // for all queries and keys of a tile; all other accesses are within the matrices.
            unsafe {
                let o = out.at(b, h, q0);
                for i in 0..m {
                    o.add(i * out.row).write_bytes(0, d);
                }
                let p = tile.as_mut_ptr();
                for k0 in (0..scores.seen(q0 + m - 1)).step_by(KEYS) {
                    let n = KEYS.min(scores.seen(q0 + m - 1) - k0);
                    scores.tile(s, (kt, narrow.as_ref()), [q0, m], [k0, n], p);
                    for i in 0..m {
                        let row = p.add(i * KEYS);
                        let n_seen = scores.seen(q0 + i).saturating_sub(k0).min(n);
                        let low = s.splat_f32s(f32::NEG_INFINITY);
                        let mut max = low;
                        for j in (0..n_seen).step_by(lanes) {
                            let x = vector::read(s, row, j, n_seen);
                            let x = match j + lanes <= n_seen {
                                true => x,
                                false => s.select_f32s(vector::first(s, n_seen - j), x, low),
                            };
                            // A NaN is passed over here, and comes back in the sum.
                            max = s.select_f32s(s.greater_than_f32s(x, max), x, max);
                        }
                        let before = maxima[i];
                        let now = before.max(s.reduce_max_f32s(max));
                        let shift = s.splat_f32s(if now == f32::NEG_INFINITY { 0. } else { now });
                        let mut sum = s.splat_f32s(0.);
                        for j in (0..n).step_by(lanes) {
                            let mut e = s.splat_f32s(0.);
                            if j < n_seen {
                                e = vector::exp(s, s.sub_f32s(vector::read(s, row, j, n), shift));
                                e = vector::within(s, e, j, n_seen);
                                sum = s.add_f32s(sum, e);
                            }
                            vector::write(s, row, j, n, e);
                        }
                        if now != before && before != f32::NEG_INFINITY {
                            let less = (before - now).exp();
                            sums[i] *= less;
                            let (less, o) = (s.splat_f32s(less), o.add(i * out.row));
                            for j in (0..d).step_by(lanes) {
                                vector::write(s, o, j, d, s.mul_f32s(less, vector::read(s, o, j, d)));
                            }
                        }
                        maxima[i] = now;
                        sums[i] += s.reduce_sum_f32s(sum);
                        if let Some(dropout) = rule.dropout {
                            range(s, row, row, n, scores.number(b, h, q0 + i, k0), dropout);
                        }
                    }
                    let data = std::slice::from_raw_parts(p, m * KEYS);
                    match &mut narrow {
                        Some(narrow) => narrow.add_keys(data, [m, n], k0, o, out.row),
                        None => {
                            let a = Matrix { data, row: KEYS, col: 1 };
                            let terms = [Term { a, b: &v[k0 * v_row..], b_row: v_row, k: n }];
                            product(s, m, d, Start::Result, &terms, o, out.row);
                        }
                    }
                }
                for i in 0..m {
                    let sum = if sums[i] == 0. { 1. } else { sums[i] };
                    let max = if maxima[i] == f32::NEG_INFINITY { 0. } else { maxima[i] };
                    // Apart: beside a large maximum the logarithm would be rounded away.
                    let log = logs.at(2 * ((b * g.heads + h) * g.tq + q0 + i));
                    log.write(max);
                    log.add(1).write(sum.ln());
                    let (share, o) = (s.splat_f32s(1. / sum), o.add(i * out.row));
                    for j in (0..d).step_by(lanes) {
                        vector::write(s, o, j, d, s.mul_f32s(share, vector::read(s, o, j, d)));
                    }
                }
            }
        }
    }
}

/// What the forward pass leaves behind.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Saved<'a> {
    pub(in crate::ops) output: Heads<'a>,
    pub(in crate::ops) logs: &'a [f32],
}

/// Adds dQ, dK and dV to `to`, which starts as zeros.
pub(in crate::ops) fn backward(
    g: Geometry,
    rule: &Rule,
    qkv: [Heads; 3],
    mask: Option<Heads>,
    saved: Saved,
    dout: Heads,
    to: [HeadsMut; 3],
) -> Result<()> {
    let level = simd::level()?;
    let (parts, size) = (g.parts(), g.tk * g.d);
    // dK and dV of each part of a head of keys, where there are several.
    let mut shares = vec![0f32; if parts > 1 { 2 * size * parts * g.batch * g.key_heads } else { 0 }];
    let at = Pointer::of(&mut shares);
    let [dq, dk, dv] = to;
    let tiles = Tiles::new();
    // Kᵀ and Vᵀ, or what is packed.
    let factors = if tiles.is_some() { Narrow::len(g) } else { 2 * size };
    parallel::for_each(g.batch * g.key_heads * parts, |task| {
        let (head, part) = (task / parts, task % parts);
        let (b, key_head) = (head / g.key_heads, head % g.key_heads);
        let (to_k, to_v) = match parts {
            1 => (dk, dv),
            _ => {
                // Each part of each head has its own two matrices among the shares.
                let (first, second) = (at.part(2 * size * task), at.part(2 * size * task + size));
                let own = |to: Pointer| HeadsMut { to, batch: 0, head: 0, row: g.d };
                (own(first), own(second))
            }
        };
        let tile = g.queries() * KEYS;
        with_scratch(factors + 3 * tile, |scratch| {
            let (factors, scores) = scratch.split_at_mut(factors);
            let to = [dq, to_k, to_v];
            level.run(BackwardPart { g, rule, b, key_head, qkv, mask, saved, dout, to, part, tiles, factors, scores });
        });
    });
    if parts > 1 {
        parallel::for_each(g.batch * g.key_heads, |head| {
            let (b, h) = (head / g.key_heads, head % g.key_heads);
            for part in 0..parts {
                for (which, to) in [dk, dv].into_iter().enumerate() {
                    let first = 2 * size * (head * parts + part) + which * size;
                    for (j, from) in shares[first..first + size].chunks_exact(g.d.max(1)).enumerate() {
                        // SAFETY: row j of this head, which this task alone writes now.
                        let row = unsafe { std::slice::from_raw_parts_mut(to.at(b, h, j), g.d) };
                        row.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                    }
                }
            }
        });
    }
    Ok(())
}

struct BackwardPart<'a> {
    g: Geometry,
    rule: &'a Rule<'a>,
    b: usize,
    key_head: usize,
    qkv: [Heads<'a>; 3],
    mask: Option<Heads<'a>>,
    saved: Saved<'a>,
    dout: Heads<'a>,
    to: [HeadsMut; 3],
    part: usize,
    tiles: Option<Tiles>,
    /// Kᵀ and Vᵀ (d, tk), or what is packed.
    factors: &'a mut [f32],
    /// P (with dropout), dS, and the dropout's factors.
    scores: &'a mut [f32],
}

impl WithSimd for BackwardPart<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { g, rule, b, key_head, qkv: [q, k, v], mask, saved, dout, to: [dq, dk, dv], part, tiles, .. } = self;
        let (lanes, d) = (S::F32_LANES, g.d);
        let (k, k_row) = (k.at(b, key_head), k.row);
        let (v, v_row) = (v.at(b, key_head), v.row);
        let (p, rest) = self.scores.split_at_mut(g.queries() * KEYS);
        let (ds, factors) = rest.split_at_mut(g.queries() * KEYS);
        let (p, ds, factors) = (p.as_mut_ptr(), ds.as_mut_ptr(), factors.as_mut_ptr());
        let mut slants = [0f32; 64];
        let range_of = g.part(part);
        let end = rule.seen_by(g, &range_of);
        let (kt, vt, mut narrow) = match tiles {
            Some(tiles) => {
                let mut narrow = Narrow::new(tiles, g, self.factors);
                narrow.keys((k, k_row), end);
                narrow.values((v, v_row), end);
                narrow.rows_of_keys((k, k_row), end);
                (&[][..], &[][..], Some(narrow))
            }
            None => {
                let (kt, vt) = self.factors.split_at_mut(g.tk * d);
                transpose(k, k_row, g.tk, d, kt);
                transpose(v, v_row, g.tk, d, vt);
                (&*kt, &*vt, None)
            }
        };
        let tiles_of = |h| range_of.clone().step_by(g.queries()).map(move |q0| (h, q0));
        for (h, q0) in g.group(key_head).flat_map(tiles_of) {
            let scores = Scores::of(g, rule, (b, h), q, mask);
            let (dout, dout_row) = (dout.at(b, h), dout.row);
            let (output, output_row) = (saved.output.at(b, h), saved.output.row);
            let m = g.queries().min(range_of.end - q0);
            if let Some(narrow) = &mut narrow {
                narrow.queries((&scores.q[q0 * scores.q_row..], scores.q_row), m, true);
                narrow.slopes((&dout[q0 * dout_row..], dout_row), m);
            }
            for (i, slant) in slants.iter_mut().enumerate().take(m) {
                let (o, t) = (&output[(q0 + i) * output_row..][..d], &dout[(q0 + i) * dout_row..][..d]);
                let mut sum = s.splat_f32s(0.);
                for j in (0..d).step_by(lanes) {
                    // SAFETY: both rows have d elements.
                    unsafe {
                        let (o, mut t) = (vector::read(s, o.as_ptr(), j, d), vector::read(s, t.as_ptr(), j, d));
                        if narrow.is_some() {
                            // As in dO Vᵀ, from which it is subtracted.
                            t = vector::bf16(s, t);
                        }
                        sum = s.mul_add_e_f32s(o, t, sum);
                    }
                }
                *slant = s.reduce_sum_f32s(sum);
            }
            for k0 in (0..scores.seen(q0 + m - 1)).step_by(KEYS) {
                let n = KEYS.min(scores.seen(q0 + m - 1) - k0);
                // SAFETY: the tiles have room for all queries and keys of a tile; rows of dQ belong to this part, dK and dV
                // to this task; all other accesses are within the matrices.
                unsafe {
                    scores.tile(s, (kt, narrow.as_ref()), [q0, m], [k0, n], p);
                    match &narrow {
                        Some(narrow) => narrow.slopes_of_scores([m, n], k0, ds),
                        None => {
                            let a = Matrix { data: &dout[q0 * dout_row..], row: dout_row, col: 1 };
                            let terms = [Term { a, b: &vt[k0..], b_row: g.tk, k: d }];
                            product(s, m, n, Start::Zero, &terms, ds, KEYS);
                        }
                    }
                    for i in 0..m {
                        let (p, ds) = (p.add(i * KEYS), ds.add(i * KEYS));
                        let n_seen = scores.seen(q0 + i).saturating_sub(k0).min(n);
                        let logs = &saved.logs[2 * ((b * g.heads + h) * g.tq + q0 + i)..][..2];
                        let (max, log) = (s.splat_f32s(logs[0]), s.splat_f32s(logs[1]));
                        let (slant, scale) = (s.splat_f32s(slants[i]), s.splat_f32s(rule.scale));
                        if let Some(dropout) = rule.dropout {
                            for j in (0..n).step_by(lanes) {
                                vector::write(s, factors, j, n, s.splat_f32s(1.));
                            }
                            range(s, factors, factors, n, scores.number(b, h, q0 + i, k0), dropout);
                        }
                        for j in (0..n).step_by(lanes) {
                            let mut e = vector::exp(s, s.sub_f32s(s.sub_f32s(vector::read(s, p, j, n), max), log));
                            e = match j < n_seen {
                                true => vector::within(s, e, j, n_seen),
                                false => s.splat_f32s(0.),
                            };
                            let (mut dropped, mut dp) = (e, vector::read(s, ds, j, n));
                            if rule.dropout.is_some() {
                                let factor = vector::read(s, factors, j, n);
                                (dropped, dp) = (s.mul_f32s(e, factor), s.mul_f32s(dp, factor));
                            }
                            vector::write(s, p, j, n, dropped);
                            let v = s.mul_f32s(s.mul_f32s(e, s.sub_f32s(dp, slant)), scale);
                            vector::write(s, ds, j, n, v);
                        }
                    }
                    let (p, ds) = (std::slice::from_raw_parts(p, m * KEYS), std::slice::from_raw_parts(ds, m * KEYS));
                    if let Some(narrow) = &mut narrow {
                        narrow.add_slopes(p, [m, n], dv.at(b, key_head, k0), dv.row);
                        narrow.add_queries(ds, [m, n], dk.at(b, key_head, k0), dk.row);
                        narrow.add_keys(ds, [m, n], k0, dq.at(b, h, q0), dq.row);
                        continue;
                    }
                    let across = |data| Matrix { data, row: 1, col: KEYS };
                    let terms = [Term { a: across(p), b: &dout[q0 * dout_row..], b_row: dout_row, k: m }];
                    product(s, n, d, Start::Result, &terms, dv.at(b, key_head, k0), dv.row);
                    let terms = [Term { a: across(ds), b: &q.at(b, h)[q0 * q.row..], b_row: q.row, k: m }];
                    product(s, n, d, Start::Result, &terms, dk.at(b, key_head, k0), dk.row);
                    let a = Matrix { data: ds, row: KEYS, col: 1 };
                    let terms = [Term { a, b: &k[k0 * k_row..], b_row: k_row, k: n }];
                    product(s, m, d, Start::Result, &terms, dq.at(b, h, q0), dq.row);
                }
            }
        }
    }
}
