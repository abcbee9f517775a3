use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_kernels_emulator::check;

use super::*;
use crate::random::{Purpose, Stream};

fn stream(step: u64) -> Stream {
    Stream::new(5, Purpose::Dropout, 6, step)
}

#[test]
fn kernel_and_gradient_agree_with_the_reference() -> Result<()> {
    for dims in [&[1][..], &[63], &[64], &[65], &[3, 7, 11], &[2, 20_001], &[0]] {
        for p in [0.2, 0.5, 0.9] {
            check(&Dropout { p, stream: stream(1) }, &[random(1, dims)?], &[true])?;
        }
    }
    Ok(())
}

#[test]
fn every_level_draws_the_stated_mask() -> Result<()> {
    let ones = Tensor::ones(40_000, DType::F32, &Device::Cpu)?;
    for level in levels() {
        let y = with_level(level, || dropout(&ones, 0.3, stream(2)))?;
        assert_eq!(y.to_vec1::<f32>()?, mask(40_000, 0.3, &stream(2))?, "{level:?}");
    }
    Ok(())
}

#[test]
fn the_share_of_dropped_elements_is_p_and_changes_with_the_step() -> Result<()> {
    let n = 100_000;
    let (a, b) = (mask(n, 0.2, &stream(1))?, mask(n, 0.2, &stream(2))?);
    let dropped = |m: &[f32]| m.iter().filter(|v| **v == 0.).count() as f64 / n as f64;
    assert!((dropped(&a) - 0.2).abs() < 0.005, "{}", dropped(&a));
    let both = a.iter().zip(&b).filter(|(a, b)| **a == 0. && **b == 0.).count() as f64 / n as f64;
    assert!((both - 0.04).abs() < 0.005, "{both}");
    assert!(mask(4, 2., &stream(1)).is_err() && mask(4, f64::NAN, &stream(1)).is_err());
    Ok(())
}

#[test]
fn impossible_probabilities_are_refused() -> Result<()> {
    let x = random(1, &[4])?;
    for p in [-0.1, 1., f64::NAN] {
        assert!(dropout(&x, p, stream(0)).is_err());
    }
    Ok(())
}
