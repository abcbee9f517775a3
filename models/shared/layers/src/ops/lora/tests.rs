use candle_core::{Device, Result, Tensor, Var};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels_emulator::check;

use super::*;
use crate::ops::Bits;

fn quantized([n, k]: [usize; 2]) -> Result<Quantized> {
    let draw = |seed: u64, n: usize| random(seed, &[n])?.to_vec1::<f32>();
    let codes: Vec<i8> = draw(1, n * k)?.iter().map(|v| (v * 3.).clamp(-8., 7.) as i8).collect();
    let groups = n * k / Bits::Four.group();
    Quantized::new(Bits::Four, [n, k], &codes, &draw(2, groups)?, &draw(3, groups)?)
}

/// What lora is of: rows of x, outputs, inputs, rank.
const SIZES: [(&[usize], usize, usize); 5] =
    [(&[1, 32], 1, 1), (&[2, 3, 64], 5, 4), (&[32], 7, 3), (&[70, 96], 33, 8), (&[0, 32], 4, 2)];

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    for (dims, n, rank) in SIZES {
        let k = dims[dims.len() - 1];
        let (x, u) = (random(1, dims)?, random(5, dims)?);
        let (a, b, w) = (random(2, &[rank, k])?, random(3, &[n, rank])?, random(4, &[n, k])?);
        let plain = Lora { quantized: None, scale: 1.5 };
        check(&plain, &[x.clone(), a.clone(), b.clone(), w.clone()], &[true, true, true, false])?;
        check(&plain, &[x.clone(), a.clone(), b.clone(), w.clone()], &[true; 4])?;
        check(&plain, &[x.clone(), a.clone(), b.clone(), w], &[false, true, true, false])?;
        check(&plain, &[x.clone(), a.clone(), b.clone(), random(4, &[n, k])?, u.clone()], &[true; 5])?;
        let packed = Lora { quantized: Some(quantized([n, k])?), scale: 0.5 };
        check(&packed, &[x.clone(), a.clone(), b.clone()], &[true; 3])?;
        check(&packed, &[x, a, b, u], &[true, true, true, false])?;
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let (x, w) = (random(1, &[3, 32])?, random(2, &[5, 32])?);
    let of = |a: &[usize], b: &[usize], u: Option<&Tensor>| {
        lora(&x, Adapted::Plain(&w), &random(3, a)?, &random(4, b)?, u, 1.)
    };
    assert!(of(&[2, 32], &[5, 2], None).is_ok());
    assert!(of(&[2, 31], &[5, 2], None).is_err());
    assert!(of(&[2, 32], &[4, 2], None).is_err());
    assert!(of(&[2, 32], &[5, 3], None).is_err());
    assert!(of(&[2, 32], &[5, 2], Some(&w)).is_err());
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let packed = quantized([96, 64])?;
    same_bits_on_any_threads(|| {
        let vars = [random(1, &[257, 64])?, random(2, &[8, 64])?, random(3, &[96, 8])?];
        let [x, a, b] = vars.map(|v| Var::from_tensor(&v));
        let (x, a, b) = (x?, a?, b?);
        let weight = random(4, &[96, 64])?;
        let mut all = vec![];
        for weight in [Adapted::Plain(&weight), Adapted::Quantized(&packed)] {
            let y = lora(&x, weight, &a, &b, None, 2.)?;
            let grads = y.sqr()?.sum_all()?.backward()?;
            all.push(y.flatten_all()?.to_vec1()?);
            for v in [&x, &a, &b] {
                let grad = grads.get(v).ok_or_else(|| candle_core::Error::msg("no gradient"))?;
                all.push(grad.flatten_all()?.to_vec1()?);
            }
        }
        Ok(all)
    })
}

#[test]
fn an_adapter_of_zeros_changes_nothing() -> Result<()> {
    let (x, w) = (random(1, &[9, 32])?, random(2, &[5, 32])?);
    let zeros = Tensor::zeros((5, 4), candle_core::DType::F32, &Device::Cpu)?;
    let y = lora(&x, Adapted::Plain(&w), &random(3, &[4, 32])?, &zeros, None, 2.)?;
    let plain = crate::ops::linear(&x, &w, None, crate::ops::Activation::Identity)?;
    assert_eq!(y.to_vec2::<f32>()?, plain.to_vec2::<f32>()?);
    Ok(())
}
