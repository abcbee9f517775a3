//! Attention of new positions of several texts, each over the keys and values of its own.

use candle_core::{Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use zoo_kernels::cpu::vector::Sum;
use zoo_kernels::cpu::{Buffer, Pointer, parallel, simd, vector, with_scratch};
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};

use super::cpu::{self, Geometry, Heads};
use super::{AttentionOptions, attention, of_heads};
use crate::ops::softmax::largest;

/// Up to so many new positions of a text, scores are dot products; more go by tiles.
const FEW: usize = 4;
/// Keys at a time.
const KEYS: usize = 4;
/// Multiplications that are worth waking a thread for.
const WORTH: usize = 1 << 17;

/// Causal attention of new positions of several texts. Their queries lie one behind the other in `q` (1, n, heads d); `texts` are how many each
/// text has, and its keys and values (1, t, key heads d), those of the new positions last. No graph is recorded. What a text gets does not depend
/// on the others.
///
/// # Errors
/// Shapes that do not fit.
pub(crate) fn attention_of_texts(q: &Tensor, heads: usize, texts: &[(usize, Tensor, Tensor)]) -> Result<Tensor> {
    let (one, n, c) = q.dims3()?;
    if one != 1 || heads == 0 || c == 0 || c % heads != 0 {
        bail!("attention: queries {:?} of texts are no {heads} heads", q.dims())
    }
    let d = c / heads;
    for (count, k, v) in texts {
        let (_, t, kc) = k.dims3()?;
        let shared = kc > 0 && kc.is_multiple_of(d) && heads.is_multiple_of(kc / d);
        if k.dims() != v.dims() || k.dim(0)? != 1 || !shared || *count > t {
            bail!("attention: k {:?} and v {:?} do not fit {count} queries of {heads} heads", k.dims(), v.dims())
        }
    }
    let sum = texts.iter().try_fold(0usize, |sum, text| sum.checked_add(text.0));
    if sum != Some(n) {
        bail!("attention: {n} queries, but not so many of the texts")
    }
    let op = OfTexts { heads, counts: texts.iter().map(|text| text.0).collect() };
    let inputs: Vec<Tensor> =
        std::iter::once(q.detach()).chain(texts.iter().flat_map(|(_, k, v)| [k.detach(), v.detach()])).collect();
    apply_one(op, &inputs.iter().collect::<Vec<_>>())
}

#[derive(Clone)]
struct OfTexts {
    heads: usize,
    counts: Vec<usize>,
}

impl OfTexts {
    /// What `of` makes of the queries, keys and values of each text, one behind the other.
    fn each(&self, inputs: &[Tensor], of: impl Fn([&Tensor; 3]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let mut first = 0;
        let mut all = vec![];
        for (count, kv) in self.counts.iter().zip(inputs[1..].chunks_exact(2)) {
            all.push(of([&inputs[0].narrow(1, first, *count)?, &kv[0], &kv[1]])?);
            first += count;
        }
        Ok(vec![if all.is_empty() { inputs[0].zeros_like()? } else { Tensor::cat(&all, 1)? }])
    }
}

impl Op for OfTexts {
    fn name(&self) -> &'static str {
        "attention of texts"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let d = inputs[0].dim(2)? / self.heads;
        let one = of_heads(self.heads, d);
        self.each(inputs, |[q, k, v]| one.plain_of(&[q.contiguous()?, k.contiguous()?, v.contiguous()?]))
    }

    fn composed(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let options = || AttentionOptions { causal: true, ..AttentionOptions::default() };
        self.each(inputs, |[q, k, v]| attention(q, k, v, self.heads, None, options()))
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let (level, heads) = (simd::level()?, self.heads);
        let (q, width) = (inputs[0].f32()?, inputs[0].width());
        let d = width / heads;
        let one = of_heads(heads, d);
        let mut out = Buffer::new(q.len());
        let to = out.pointer();
        let (mut tasks, mut cost, mut first) = (vec![], 0, 0);
        for (&count, kv) in self.counts.iter().zip(inputs[1..].chunks_exact(2)) {
            let (k, v, kc) = (kv[0].f32()?, kv[1].f32()?, kv[0].width());
            let (t, key_heads, q) = (k.len() / kc, kc / d, &q[first * width..][..count * width]);
            if count > FEW {
                let g = Geometry { batch: 1, heads, key_heads, tq: count, tk: t, d };
                let of = |data, t, width| Heads::side_by_side(data, t, width, d);
                let like = of(&[], count, width);
                let (own, _) =
                    cpu::forward(g, &one.rule(), of(q, count, width), of(k, t, kc), of(v, t, kc), None, like)?;
                // SAFETY: the rows of this text, which nobody else writes.
                unsafe { to.at(first * width).copy_from_nonoverlapping(own.as_ptr(), own.len()) }
            } else {
                let text = Text { q, k, v, count, width, kc, d, scale: one.rule().scale, to: to.part(first * width) };
                tasks.extend((0..key_heads).map(|head| (text, head)));
                cost += 2 * count * t * width;
            }
            first += count;
        }
        let least = tasks.len() * WORTH / cost.max(1);
        parallel::evenly(tasks.len(), least, |range| level.run(Few { tasks: &tasks[range], heads }));
        // SAFETY: the texts cover all positions, and the tasks of a text all its heads.
        let data = unsafe { out.finish() };
        Ok(Forward { outputs: vec![Output { data, shape: inputs[0].dims().into() }], saved: vec![] })
    }

    fn cpu_backward(&self, _: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        bail!("attention of texts: what is in a cache has no graph")
    }
}

/// A text with few new positions.
#[derive(Clone, Copy)]
struct Text<'a> {
    /// (count, width)
    q: &'a [f32],
    /// (t, kc)
    k: &'a [f32],
    v: &'a [f32],
    count: usize,
    width: usize,
    kc: usize,
    d: usize,
    scale: f32,
    to: Pointer,
}

/// The heads of some texts, each with the queries that share it.
struct Few<'a> {
    tasks: &'a [(Text<'a>, usize)],
    heads: usize,
}

impl WithSimd for Few<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        for (text, key_head) in self.tasks {
            let group = self.heads * text.d / text.kc;
            let t = text.k.len() / text.kc;
            with_scratch(t, |scores| {
                for query in 0..text.count {
                    let scores = &mut scores[..t + 1 + query - text.count];
                    for head in key_head * group..(key_head + 1) * group {
                        // SAFETY: this task alone writes this head of the text's rows.
                        unsafe { text.attend(s, query, head, *key_head, scores) }
                    }
                }
            });
        }
    }
}

impl Text<'_> {
    /// One head of one query over as many keys as there are `scores`.
    ///
    /// # Safety
    /// Nobody else accesses the result of this head.
    #[inline(always)]
    unsafe fn attend<S: Simd>(&self, s: S, query: usize, head: usize, key_head: usize, scores: &mut [f32]) {
        let Self { kc, d, .. } = *self;
        let (lanes, n) = (S::F32_LANES, scores.len());
        let at = query * self.width + head * d;
        let q = self.q[at..][..d].as_ptr();
        let row = |of: &[f32], j: usize| of[j * kc + key_head * d..][..d].as_ptr();
        for first in (0..n).step_by(KEYS) {
            let keys = [0, 1, 2, 3].map(|i| row(self.k, (first + i).min(n - 1)));
            let mut sums = [s.splat_f32s(0.); KEYS];
            for e in (0..d).step_by(lanes) {
                // SAFETY: heads have d features.
                unsafe {
                    let q = vector::read(s, q, e, d);
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = s.mul_add_e_f32s(q, vector::read(s, key, e, d), *sum);
                    }
                }
            }
            for (score, sum) in scores[first..].iter_mut().zip(sums) {
                *score = self.scale * s.reduce_sum_f32s(sum);
            }
        }
        let p = scores.as_mut_ptr();
        // SAFETY: there are n scores, at least that of the query's own place.
        let max = s.splat_f32s(unsafe { largest(s, p, n) });
        let mut sum = Sum::new(s);
        for j in (0..n).step_by(lanes) {
            // SAFETY: there are n scores.
            unsafe {
                let e = vector::exp(s, s.sub_f32s(vector::read(s, p, j, n), max));
                let e = vector::within(s, e, j, n);
                sum.add(s, e);
                vector::write(s, p, j, n, e);
            }
        }
        let share = s.splat_f32s(1. / sum.finish(s));
        // SAFETY: the features of this head, which the caller promises to be this task's.
        let out = unsafe { self.to.at(at) };
        const WIDE: usize = 4;
        for e in (0..d).step_by(WIDE * lanes) {
            let mut all = [s.splat_f32s(0.); WIDE];
            for (j, p) in scores.iter().enumerate() {
                let (p, v) = (s.splat_f32s(*p), row(self.v, j));
                for (i, all) in all.iter_mut().enumerate().filter(|(i, _)| e + i * lanes < d) {
                    // SAFETY: heads have d features.
                    *all = s.mul_add_e_f32s(p, unsafe { vector::read(s, v, e + i * lanes, d) }, *all);
                }
            }
            for (i, all) in all.into_iter().enumerate().filter(|(i, _)| e + i * lanes < d) {
                // SAFETY: as above.
                unsafe { vector::write(s, out, e + i * lanes, d, s.mul_f32s(all, share)) }
            }
        }
    }
}
