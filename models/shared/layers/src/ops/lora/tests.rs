use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels_emulator::check;

use super::*;
use crate::ops::Bits;
use crate::random::Purpose;

fn quantized([n, k]: [usize; 2]) -> Result<Quantized> {
    let draw = |seed: u64, n: usize| random(seed, &[n])?.to_vec1::<f32>();
    let codes: Vec<i8> = draw(1, n * k)?.iter().map(|v| (v * 3.).clamp(-8., 7.) as i8).collect();
    let groups = n * k / Bits::Four.group();
    Quantized::new(Bits::Four, [n, k], &codes, &draw(2, groups)?, &draw(3, groups)?)
}

fn of<'a>(a: &'a Tensor, b: &'a Tensor, scale: f64, dropout: f64) -> Option<LoraOf<'a>> {
    let stream = Stream::new(3, Purpose::Dropout, 5, 7);
    Some(LoraOf { a, b, scale, dropout: (dropout > 0.).then_some((dropout, stream)) })
}

/// What lora is of: rows of x, outputs, inputs, rank.
const SIZES: [(&[usize], usize, usize); 5] =
    [(&[1, 32], 1, 1), (&[2, 3, 64], 5, 4), (&[32], 7, 3), (&[70, 96], 33, 8), (&[0, 32], 4, 2)];

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    for (dims, n, rank) in SIZES {
        let k = dims[dims.len() - 1];
        let x = random(1, dims)?;
        let (a, b, w) = (random(2, &[rank, k])?, random(3, &[n, rank])?, random(4, &[n, k])?);
        let packed = quantized([n, k])?;
        for (dropout, needs) in [
            (0., [true, false, true, true]),
            (0.4, [true; 4]),
            (0., [false, false, true, true]),
            (0.4, [true, false, false, true]),
        ] {
            let mut inputs = vec![&x];
            let map = Map { weight: MapWeight::Plain(&w), lora: of(&a, &b, 1.5, dropout) };
            let map = MapAt::of(&map, [n, k], &mut inputs)?;
            check(&Lora { map }, &inputs.into_iter().cloned().collect::<Vec<_>>(), &needs)?;
            let mut inputs = vec![&x];
            let map = Map { weight: MapWeight::Quantized(&packed), lora: of(&a, &b, 0.5, dropout) };
            let map = MapAt::of(&map, [n, k], &mut inputs)?;
            let needs = [needs[0], needs[2], needs[3]];
            check(&Lora { map }, &inputs.into_iter().cloned().collect::<Vec<_>>(), &needs)?;
        }
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let (x, w) = (random(1, &[3, 32])?, random(2, &[5, 32])?);
    let apply = |a: &[usize], b: &[usize], p: f64| {
        let (a, b) = (random(3, a)?, random(4, b)?);
        linear_map(&x, Map { weight: MapWeight::Plain(&w), lora: of(&a, &b, 1., p) })
    };
    assert!(apply(&[2, 32], &[5, 2], 0.).is_ok());
    assert!(apply(&[2, 31], &[5, 2], 0.).is_err());
    assert!(apply(&[2, 32], &[4, 2], 0.).is_err());
    assert!(apply(&[2, 32], &[5, 3], 0.).is_err());
    assert!(apply(&[0, 32], &[5, 0], 0.).is_err());
    assert!(apply(&[2, 32], &[5, 2], 1.).is_err());
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
        for weight in [MapWeight::Plain(&weight), MapWeight::Quantized(&packed)] {
            let y = linear_map(&x, Map { weight, lora: of(&a, &b, 2., 0.1) })?;
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
    let (a, zeros) = (random(3, &[4, 32])?, Tensor::zeros((5, 4), DType::F32, &Device::Cpu)?);
    let y = linear_map(&x, Map { weight: MapWeight::Plain(&w), lora: of(&a, &zeros, 2., 0.) })?;
    let plain = linear_map(&x, Map { weight: MapWeight::Plain(&w), lora: None })?;
    assert_eq!(y.to_vec2::<f32>()?, plain.to_vec2::<f32>()?);
    Ok(())
}
