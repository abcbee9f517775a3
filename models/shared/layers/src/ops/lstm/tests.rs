use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels::cpu::simd::{self, levels, with_level};
use zoo_kernels_emulator::check;

use super::*;
use crate::random::{Purpose, Stream};

fn weights(input: usize, hidden: usize) -> Result<Vec<Tensor>> {
    let g = 4 * hidden;
    let scale = 1. / (hidden as f64).sqrt();
    [vec![g, input], vec![g, hidden], vec![g], vec![g]]
        .iter()
        .enumerate()
        .map(|(i, d)| random(10 + i as u64, d)? * scale)
        .collect()
}

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    // Hidden sizes around vector widths and both kinds of sharing, batches around tiles and chunks.
    for (batch, time, input, hidden) in [
        (1, 1, 1, 1),
        (2, 3, 1, 5),
        (9, 4, 3, 16),
        (17, 5, 2, 17),
        (33, 3, 6, 50),
        (3, 70, 1, 4),
        (1, 257, 3, 3),
        (1, 3, 2, 256),
        (9, 3, 5, 259),
    ] {
        let mut inputs = vec![random(1, &[batch, time, input])?];
        inputs.extend(weights(input, hidden)?);
        for sequence in [true, false] {
            check(&Lstm { sequence, dropout: None }, &inputs, &[true; 5])?;
            check(&Lstm { sequence, dropout: None }, &inputs, &[false, true, true, true, true])?;
        }
        let dropout = Some(Dropout::new(0.3, Stream::new(1, Purpose::Dropout, 2, 3))?);
        check(&Lstm { sequence: true, dropout }, &inputs, &[true; 5])?;
        inputs.extend([random(2, &[batch, hidden])?, random(3, &[batch, hidden])?]);
        check(&Lstm { sequence: true, dropout: None }, &inputs, &[true; 7])?;
        check(&Lstm { sequence: false, dropout: None }, &inputs, &[true, false, false, false, false, true, false])?;
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    for level in levels() {
        // The level belongs to a thread: it is set on the pool's own.
        let work = |hidden| -> Result<Vec<Vec<f32>>> {
            let vars = weights(3, hidden)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
            let w = LstmWeights {
                weight_ih: vars[0].as_tensor().clone(),
                weight_hh: vars[1].as_tensor().clone(),
                bias_ih: vars[2].as_tensor().clone(),
                bias_hh: vars[3].as_tensor().clone(),
            };
            assert_eq!(simd::level()?, level);
            let dropout = Some((0.2, Stream::new(1, Purpose::Dropout, 2, 3)));
            let (y, state) = lstm(&random(1, &[37, 11, 3])?, &w, None, dropout, true)?;
            let y = y.ok_or_else(|| candle_core::Error::msg("no sequence"))?;
            let grads = (y.sqr()?.sum_all()? + state.c.sum_all()?)?.backward()?;
            vars.iter()
                .map(|v| grads.get(v).ok_or_else(|| candle_core::Error::msg("no gradient"))?.flatten_all()?.to_vec1())
                .collect()
        };
        for hidden in [50, 300] {
            same_bits_on_any_threads(|| with_level(level, || work(hidden)))?;
        }
    }
    Ok(())
}

#[test]
fn nan_stays_in_its_row_and_huge_inputs_saturate() -> Result<()> {
    let w = weights(2, 5)?;
    let w =
        LstmWeights { weight_ih: w[0].clone(), weight_hh: w[1].clone(), bias_ih: w[2].clone(), bias_hh: w[3].clone() };
    let x = Tensor::new(&[[[1f32, 2.], [f32::NAN, 0.]], [[1e4, -1e4], [-1e4, 1e4]]], &Device::Cpu)?;
    let (_, state) = lstm(&x, &w, None, None, false)?;
    let h = state.h.to_vec2::<f32>()?;
    assert!(h[0].iter().all(|v| v.is_nan()) && h[1].iter().all(|v| v.is_finite()), "{h:?}");
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let w = weights(2, 5)?;
    let w =
        LstmWeights { weight_ih: w[0].clone(), weight_hh: w[1].clone(), bias_ih: w[2].clone(), bias_hh: w[3].clone() };
    assert!(lstm(&zeros(&[1, 3, 3])?, &w, None, None, true).is_err());
    assert!(lstm(&zeros(&[1, 0, 2])?, &w, None, None, true).is_err());
    assert!(lstm(&zeros(&[0, 3, 2])?, &w, None, None, true).is_err());
    let state = LstmState { h: zeros(&[2, 5])?, c: zeros(&[1, 5])? };
    assert!(lstm(&zeros(&[1, 3, 2])?, &w, Some(&state), None, true).is_err());
    Ok(())
}
