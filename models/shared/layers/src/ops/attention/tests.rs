use candle_core::{DType, Device, Result, Tensor};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels::cpu::simd::{levels, with_fused, with_level};
use zoo_kernels_emulator::{check, ready, with_emulation};

use super::*;
use crate::random::Purpose;

fn op(heads: usize, causal: bool, dropout: bool, d: usize) -> Result<Attention> {
    let dropout = if dropout { Some(Dropout::new(0.3, Stream::new(1, Purpose::Dropout, 2, 3))?) } else { None };
    Ok(Attention { heads, causal, scale: 1. / (d as f64).sqrt(), dropout, packed: false })
}

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    // Batch, heads, queries, keys, width: one of each, odd ones, one past a tile, more keys than queries, several tiles.
    for (b, h, tq, tk, d) in [
        (1, 1, 1, 1, 1),
        (2, 3, 5, 5, 4),
        (1, 2, 33, 65, 17),
        (1, 1, 130, 130, 8),
        (3, 4, 64, 64, 16),
        (1, 1, 3, 70, 32),
        (1, 1, 257, 257, 4),
        (1, 1, 70, 70, 64),
        (1, 1, 70, 130, 128),
        (1, 8, 40, 75, 80),
        (1, 1, 64, 130, 24),
        (1, 2, 17, 33, 130),
    ] {
        // With one key the weights are 1 whatever the scores: their gradient is zero but for rounding.
        let wants = [tk > 1, tk > 1, true];
        for causal in [false, true] {
            for dropout in [false, true] {
                let op = op(h, causal, dropout, d)?;
                let of = |seed, t| random(seed, &[b, h, t, d]);
                check(&op, &[of(1, tq)?, of(2, tk)?, of(3, tk)?], &wants)?;
                let of = |seed, t| random(seed, &[b, t, h * d]);
                check(&op, &[of(1, tq)?, of(2, tk)?, of(3, tk)?], &wants)?;
            }
        }
    }
    Ok(())
}

#[test]
fn sums_over_thousands_of_keys_lose_little() -> Result<()> {
    // At every level of the CPU. A GPU's kernel adds key after key, which gives 1.3e-6 of the largest value, the checker's bound.
    let of = |seed, t| random(seed, &[1, 1, t, 8]);
    for (queries, causal) in [(3, false), (65, true)] {
        zoo_kernels::check::check(
            &op(1, causal, false, 8)?,
            &[of(1, queries)?, of(2, 8192)?, of(3, 8192)?],
            &[true; 3],
        )?;
    }
    Ok(())
}

#[test]
fn queries_keys_and_values_may_lie_side_by_side() -> Result<()> {
    for (b, h, t, d) in
        [(1, 1, 2, 1), (2, 3, 5, 4), (1, 2, 70, 24), (2, 2, 33, 64), (1, 1, 20, 128), (1, 2, 3, 130), (0, 2, 3, 4)]
    {
        for (causal, dropout) in [(false, true), (true, false)] {
            let op = Attention { packed: true, ..op(h, causal, dropout, d)? };
            check(&op, &[random(1, &[b, t, 3 * h * d])?], &[true])?;
        }
    }
    Ok(())
}

#[test]
fn heads_of_queries_may_share_those_of_keys() -> Result<()> {
    // Batch, heads of queries and of keys, queries, keys, width.
    for (b, h, kh, tq, tk, d) in [
        (1, 2, 1, 1, 1, 2),
        (2, 6, 2, 5, 5, 4),
        (1, 9, 3, 70, 70, 16),
        (3, 4, 1, 33, 65, 24),
        (1, 4, 2, 1, 75, 80),
        (1, 4, 2, 130, 130, 64),
        (0, 4, 2, 3, 3, 4),
    ] {
        let wants = [tk > 1, tk > 1, true];
        for (causal, dropout) in [(false, false), (true, false), (true, true)] {
            let op = op(h, causal, dropout, d)?;
            let of = |seed, heads, t| random(seed, &[b, heads, t, d]);
            check(&op, &[of(1, h, tq)?, of(2, kh, tk)?, of(3, kh, tk)?], &wants)?;
            let of = |seed, heads, t| random(seed, &[b, t, heads * d]);
            check(&op, &[of(1, h, tq)?, of(2, kh, tk)?, of(3, kh, tk)?], &wants)?;
        }
    }
    let mask = random(4, &[2, 6, 5, 70])?;
    let inputs = [random(1, &[2, 6, 5, 8])?, random(2, &[2, 2, 70, 8])?, random(3, &[2, 2, 70, 8])?, mask];
    check(&op(6, false, true, 8)?, &inputs, &[true, true, true, false])
}

#[test]
fn masks_are_added_whatever_they_are_shared_by() -> Result<()> {
    let op = op(3, false, true, 8)?;
    let of = |seed, t: usize| random(seed, &[2, 3, t, 8]);
    for dims in [[2, 1, 1, 70], [1, 1, 5, 70], [2, 1, 5, 70], [1, 3, 5, 70], [2, 3, 5, 70]] {
        let mask = random(4, &dims)?;
        // Some keys that nobody sees, some that not all see.
        let hidden = mask.gt(0.8f32)?.where_cond(&Tensor::full(f32::NEG_INFINITY, &dims, &Device::Cpu)?, &mask)?;
        for mask in [mask, hidden] {
            check(&op, &[of(1, 5)?, of(2, 70)?, of(3, 70)?, mask], &[true, true, true, false])?;
        }
    }
    Ok(())
}

/// Runs `f` for tensors of some type: on the CPU at every level, and by the GPU kernels there.
fn everywhere(f: impl Fn(DType) -> Result<()>) -> Result<()> {
    levels().into_iter().try_for_each(|level| with_level(level, || f(DType::F32)))?;
    if ready() {
        [DType::F32, DType::BF16].into_iter().try_for_each(|dtype| with_emulation(false, || f(dtype)))?;
    }
    Ok(())
}

fn floats(t: &Tensor) -> Result<Vec<f32>> {
    t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[test]
fn huge_scores_hidden_rows_and_nan_are_handled() -> Result<()> {
    let finite = |t: &Tensor| -> Result<bool> { Ok(floats(t)?.iter().all(|v| v.is_finite())) };
    everywhere(|dtype| {
        let of = |seed| random(seed, &[1, 2, 40, 8])?.to_dtype(dtype);
        let (q, k, v) = (of(1)?, of(2)?, of(3)?);
        assert!(finite(&attention(&(&q * 1e4)?, &k, &v, 2, None, AttentionOptions::default())?)?);
        // Query 3 sees nothing.
        let row = |i: u32| if i == 3 { f32::NEG_INFINITY } else { 0. };
        let mask: Vec<f32> = (0..40 * 40).map(|e| row(e / 40)).collect();
        let mask = Tensor::from_vec(mask, (40, 40), &Device::Cpu)?.to_dtype(dtype)?;
        let var = candle_core::Var::from_tensor(&q)?;
        let y = attention(&var, &k, &v, 2, Some(&mask), AttentionOptions::default())?;
        assert!(floats(&y.narrow(2, 3, 1)?)?.iter().all(|v| *v == 0.));
        let grads = y.sqr()?.sum_all()?.backward()?;
        let dq = grads.get(&var).ok_or_else(|| candle_core::Error::msg("no gradient"))?;
        assert!(finite(dq)?);
        assert!(floats(&dq.narrow(2, 3, 1)?)?.iter().all(|v| *v == 0.));
        // A NaN in one query reaches its row and no other.
        let mut data = floats(&q)?;
        data[5 * 8] = f32::NAN;
        let q = Tensor::from_vec(data, q.shape(), &Device::Cpu)?.to_dtype(dtype)?;
        let y = attention(&q, &k, &v, 2, None, Default::default())?;
        assert!(floats(&y.narrow(2, 5, 1)?.narrow(1, 0, 1)?)?.iter().all(|v| v.is_nan()));
        assert!(finite(&y.narrow(1, 1, 1)?)? && finite(&y.narrow(2, 6, 34)?)? && finite(&y.narrow(2, 0, 5)?)?);
        Ok(())
    })
}

#[test]
fn a_row_of_large_negative_scores_has_the_gradients_of_the_reference() -> Result<()> {
    everywhere(|dtype| {
        // The usual padding: too large for the logarithm of a sum to be kept beside it.
        let mask = Tensor::full(-1e9f32, (4, 4), &Device::Cpu)?.to_dtype(dtype)?;
        let grads = |fused: bool| -> Result<Vec<Vec<f32>>> {
            let vars = (0..3).map(|i| candle_core::Var::from_tensor(&random(i, &[1, 1, 4, 8])?.to_dtype(dtype)?));
            let vars = vars.collect::<Result<Vec<_>>>()?;
            with_fused(fused, || {
                let y = attention(&vars[0], &vars[1], &vars[2], 1, Some(&mask), Default::default())?;
                let grads = y.sqr()?.sum_all()?.backward()?;
                let grad = |v: &Tensor| grads.get(v).map_or(Ok(vec![]), floats);
                vars.iter().map(|v| grad(v.as_tensor())).collect()
            })
        };
        let near = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
        for (kernel, reference) in grads(true)?.iter().zip(grads(false)?) {
            assert_eq!(kernel.len(), reference.len());
            assert!(kernel.iter().zip(&reference).all(|(k, r)| (k - r).abs() < near), "{kernel:?} {reference:?}");
        }
        Ok(())
    })
}

#[test]
fn a_mask_that_learns_gets_its_gradient() -> Result<()> {
    let (q, k, v) = (random(1, &[1, 2, 4, 8])?, random(2, &[1, 2, 4, 8])?, random(3, &[1, 2, 4, 8])?);
    let mask = candle_core::Var::from_tensor(&random(4, &[2, 4, 4])?)?;
    let grads = attention(&q, &k, &v, 2, Some(&mask), Default::default())?.sqr()?.sum_all()?.backward()?;
    assert!(grads.get(&mask).is_some());
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let of = |dims: &[usize]| random(1, dims);
    let causal = || AttentionOptions { causal: true, ..Default::default() };
    let q = of(&[2, 3, 4, 8])?;
    assert!(attention(&q, &of(&[2, 3, 4, 7])?, &of(&[2, 3, 4, 7])?, 3, None, causal()).is_err());
    assert!(attention(&q, &q, &q, 2, None, causal()).is_err());
    assert!(attention(&of(&[2, 4, 8])?, &of(&[2, 4, 8])?, &of(&[2, 4, 8])?, 3, None, causal()).is_err());
    assert!(attention(&q, &q, &q, 3, Some(&of(&[4, 5])?), causal()).is_err());
    assert!(attention(&q, &of(&[2, 2, 4, 8])?, &of(&[2, 2, 4, 8])?, 3, None, causal()).is_err());
    assert!(attention(&of(&[2, 4, 24])?, &of(&[2, 4, 12])?, &of(&[2, 4, 12])?, 3, None, causal()).is_err());
    assert!(attention(&q, &of(&[2, 3, 3, 8])?, &of(&[2, 3, 3, 8])?, 3, None, causal()).is_err());
    Ok(())
}

#[test]
fn texts_get_what_each_gets_alone() -> Result<()> {
    // Queries and keys of each text: the first at all, few, the most that are few, a prompt, a prompt behind others.
    let sizes = [(1, 1), (1, 7), (1, 130), (3, 70), (4, 4), (33, 33), (5, 80)];
    for (heads, key_heads, d) in [(3, 3, 8), (4, 2, 17), (6, 1, 64), (2, 2, 130), (2, 1, 1)] {
        everywhere(|dtype| {
            let of = |seed, t: usize, heads: usize| random(seed, &[1, t, heads * d])?.to_dtype(dtype);
            let part = |(i, &(count, t)): (usize, &(usize, usize))| {
                let (i, q) = (i as u64, of(i as u64, count, heads)?);
                Ok((q, (count, of(10 + i, t, key_heads)?, of(20 + i, t, key_heads)?)))
            };
            let (queries, texts): (Vec<_>, Vec<_>) =
                sizes.iter().enumerate().map(part).collect::<Result<Vec<_>>>()?.into_iter().unzip();
            let together = attention_of_texts(&Tensor::cat(&queries, 1)?, heads, &texts)?;
            let mut first = 0;
            for (q, (count, k, v)) in queries.iter().zip(texts) {
                let own = floats(&together.narrow(1, first, count)?)?;
                let causal = AttentionOptions { causal: true, ..Default::default() };
                let usual = floats(&attention(q, &k, &v, heads, None, causal)?)?;
                let near = if dtype == DType::F32 { 2e-6 } else { 2e-2 };
                let error = own.iter().zip(&usual).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                assert!(error < near, "{count} queries, {} keys, {heads} heads of {d}: {error}", k.dim(1)?);
                // To the bit: a text does not depend on the others.
                assert_eq!(own, floats(&attention_of_texts(q, heads, &[(count, k, v)])?)?);
                first += count;
            }
            Ok(())
        })?;
    }
    let of = |t: usize, c: usize| random(1, &[1, t, c]);
    assert!(attention_of_texts(&of(3, 8)?, 2, &[(2, of(2, 8)?, of(2, 8)?)]).is_err());
    assert!(attention_of_texts(&of(2, 8)?, 2, &[(2, of(1, 8)?, of(1, 8)?)]).is_err());
    assert!(attention_of_texts(&of(1, 8)?, 3, &[(1, of(1, 8)?, of(1, 8)?)]).is_err());
    assert!(attention_of_texts(&of(1, 8)?, 2, &[(1, of(1, 6)?, of(1, 6)?)]).is_err());
    assert_eq!(attention_of_texts(&of(0, 8)?, 2, &[])?.dims(), [1, 0, 8]);
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    same_bits_on_any_threads(|| {
        let vars = (0..3).map(|i| candle_core::Var::from_tensor(&random(i, &[1, 2, 300, 16])?));
        let vars = vars.collect::<Result<Vec<_>>>()?;
        let y =
            attention(&vars[0], &vars[1], &vars[2], 2, None, AttentionOptions { causal: true, ..Default::default() })?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        let grad = |v| grads.get(v).ok_or_else(|| candle_core::Error::msg("no gradient"))?.flatten_all()?.to_vec1();
        vars.iter().map(|v| grad(v.as_tensor())).collect()
    })
}
