//! The products of a head's tiles in bf16: what each tile is multiplied with is rounded and packed once.

use zoo_kernels::cpu::bf16::Tiles;
use zoo_kernels::cpu::product::Matrix;

use super::cpu::{Geometry, KEYS};

/// Rows of d elements each, so far apart.
type Rows<'a> = (&'a [f32], usize);

/// Packed factors of a head: K and V for all of its keys, the others for a tile.
pub(super) struct Narrow<'a> {
    tiles: Tiles,
    g: Geometry,
    /// Kᵀ and Vᵀ (d, tk).
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// K (backward) or V (forward), tile by tile: (keys, d); and how many keys there are.
    rows_of_keys: &'a mut [f32],
    end: usize,
    /// Q and dO (queries, d), as left factors and as right ones.
    queries: [&'a mut [f32]; 2],
    slopes: [&'a mut [f32]; 2],
    /// P or dS, as it is or across.
    scores: &'a mut [f32],
}

impl<'a> Narrow<'a> {
    /// What it needs of memory.
    pub(super) fn len(g: Geometry) -> usize {
        Self::parts(g).iter().sum()
    }

    fn parts(g: Geometry) -> [usize; 8] {
        let (queries, d) = (g.queries(), g.d);
        let across = Tiles::right_len(d, g.tk);
        let tile = Tiles::right_len(KEYS, d);
        let (left, right) = (Tiles::left_len(queries, d), Tiles::right_len(queries, d));
        let scores = Tiles::left_len(queries, KEYS).max(Tiles::left_len(KEYS, queries));
        [across, across, tile * g.tk.div_ceil(KEYS), left, right, left, right, scores]
    }

    /// For a head of this geometry, in [`Narrow::len`] elements of memory.
    pub(super) fn new(tiles: Tiles, g: Geometry, mut memory: &'a mut [f32]) -> Self {
        let [keys, values, rows_of_keys, q, q_right, dout, dout_right, scores] = Self::parts(g).map(|n| {
            let (own, rest) = std::mem::take(&mut memory).split_at_mut(n);
            memory = rest;
            own
        });
        let (queries, slopes) = ([q, q_right], [dout, dout_right]);
        Self { tiles, g, keys, values, rows_of_keys, end: 0, queries, slopes, scores }
    }

    /// K of the keys before `end`.
    pub(super) fn keys(&mut self, (k, row): Rows, end: usize) {
        self.tiles.right(Matrix { data: k, row: 1, col: row }, [self.g.d, end], self.keys);
    }

    /// V likewise.
    pub(super) fn values(&mut self, (v, row): Rows, end: usize) {
        self.tiles.right(Matrix { data: v, row: 1, col: row }, [self.g.d, end], self.values);
    }

    /// K or V tile by tile.
    pub(super) fn rows_of_keys(&mut self, (rows, row): Rows, end: usize) {
        let size = Tiles::right_len(KEYS, self.g.d);
        self.end = end;
        for (tile, first) in (0..end).step_by(KEYS).enumerate() {
            let n = KEYS.min(end - first);
            let from = Matrix { data: &rows[first * row..], row, col: 1 };
            self.tiles.right(from, [n, self.g.d], &mut self.rows_of_keys[tile * size..][..size]);
        }
    }

    /// Q of `m` queries; for dK, too.
    pub(super) fn queries(&mut self, (q, row): Rows, m: usize, is_backward: bool) {
        let from = Matrix { data: q, row, col: 1 };
        self.tiles.left(from, [m, self.g.d], self.queries[0]);
        if is_backward {
            self.tiles.right(from, [m, self.g.d], self.queries[1]);
        }
    }

    /// dO of `m` queries.
    pub(super) fn slopes(&mut self, (dout, row): Rows, m: usize) {
        let from = Matrix { data: dout, row, col: 1 };
        self.tiles.left(from, [m, self.g.d], self.slopes[0]);
        self.tiles.right(from, [m, self.g.d], self.slopes[1]);
    }

    /// Q Kᵀ of `m` queries and `n` keys from `k0` on, in rows of [`KEYS`].
    ///
    /// # Safety
    /// `to` has m such rows.
    pub(super) unsafe fn scores(&self, [m, n]: [usize; 2], k0: usize, to: *mut f32) {
        let keys = Tiles::part(self.keys, self.g.d, k0);
        // SAFETY: the caller's promise.
        unsafe { self.tiles.product([m, n, self.g.d], self.queries[0], keys, false, to, KEYS) }
    }

    /// dO Vᵀ likewise.
    ///
    /// # Safety
    /// As [`Narrow::scores`].
    pub(super) unsafe fn slopes_of_scores(&self, [m, n]: [usize; 2], k0: usize, to: *mut f32) {
        let values = Tiles::part(self.values, self.g.d, k0);
        // SAFETY: the caller's promise.
        unsafe { self.tiles.product([m, n, self.g.d], self.slopes[0], values, false, to, KEYS) }
    }

    /// Adds scores (m, n) times K or V, from key `k0` on, to rows of d elements.
    ///
    /// # Safety
    /// `to` has m rows, initialised, which nobody else accesses.
    pub(super) unsafe fn add_keys(&mut self, p: &[f32], [m, n]: [usize; 2], k0: usize, to: *mut f32, row: usize) {
        let d = self.g.d;
        self.tiles.left(Matrix { data: p, row: KEYS, col: 1 }, [m, n], self.scores);
        let tile = Tiles::right_len(KEYS, d);
        let keys = &self.rows_of_keys[k0 / KEYS * tile..][..tile];
        // Of the tile's keys the last queries see more than these do: where features from `first` on are, its own number tells.
        let packed = KEYS.min(self.end - k0);
        for first in (0..d).step_by(Tiles::PANEL) {
            let (keys, size) = (Tiles::part(keys, packed, first), [m, Tiles::PANEL.min(d - first), n]);
            // SAFETY: the caller's promise.
            unsafe { self.tiles.product(size, self.scores, keys, true, to.wrapping_add(first), row) }
        }
    }

    /// Adds the transpose of scores (m, n) times Q to rows of d elements, one for each of the n keys.
    ///
    /// # Safety
    /// `to` has n rows, initialised, which nobody else accesses.
    pub(super) unsafe fn add_queries(&mut self, ds: &[f32], size: [usize; 2], to: *mut f32, row: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.add_across(ds, size, false, to, row) }
    }

    /// The same with dO.
    ///
    /// # Safety
    /// As [`Narrow::add_queries`].
    pub(super) unsafe fn add_slopes(&mut self, p: &[f32], size: [usize; 2], to: *mut f32, row: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.add_across(p, size, true, to, row) }
    }

    /// # Safety
    /// As [`Narrow::add_queries`].
    unsafe fn add_across(&mut self, p: &[f32], [m, n]: [usize; 2], slopes: bool, to: *mut f32, row: usize) {
        self.tiles.left(Matrix { data: p, row: 1, col: KEYS }, [n, m], self.scores);
        let right = if slopes { &*self.slopes[1] } else { &*self.queries[1] };
        // SAFETY: the caller's promise.
        unsafe { self.tiles.product([n, self.g.d, m], self.scores, right, true, to, row) }
    }
}
