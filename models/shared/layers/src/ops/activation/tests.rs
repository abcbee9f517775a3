use candle_core::{Device, Result, Tensor, Var};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_kernels_emulator::{check, ready, with_emulation};

use super::*;

pub(crate) const ALL: [Activation; 6] = [
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Elu(1.),
    Activation::Elu(0.5),
];

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for f in ALL {
        for dims in [&[1][..], &[17], &[0, 4], &[3, 5], &[2, 8193]] {
            check(&Elementwise(f), &[(random(2, dims)? * 3.)?], &[true])?;
        }
        // Far out, where one side is the identity and the other nothing.
        check(&Elementwise(f), &[Tensor::arange(-15.25f32, 15.3, &Device::Cpu)?], &[true])?;
    }
    Ok(())
}

#[test]
fn gated_units_agree_with_the_reference() -> Result<()> {
    for f in [Activation::Identity].into_iter().chain(ALL) {
        for dims in [&[1][..], &[17], &[0, 4], &[3, 5], &[2, 8193]] {
            let (gate, up) = ((random(2, dims)? * 3.)?, random(3, dims)?);
            check(&gated::Gated(f), &[gate, up], &[true, true])?;
        }
    }
    assert!(super::gated(&random(1, &[2, 3])?, &random(1, &[3, 2])?, Activation::Silu).is_err());
    Ok(())
}

#[test]
fn extremes_are_finite_and_nan_stays() -> Result<()> {
    let x = Tensor::new(&[f32::NAN, 1e4, -1e4, 0.], &Device::Cpu)?;
    for level in levels() {
        for f in ALL {
            let y = with_level(level, || f.apply(&x))?.to_vec1::<f32>()?;
            assert!(y[0].is_nan() && y[1] == 1e4 && y[2] <= 0. && y[2] >= -1. && y[3] == 0., "{f:?} {level:?}: {y:?}");
        }
    }
    Ok(())
}

#[test]
fn values_and_slopes_are_those_of_the_limits_at_the_ends_of_f32() -> Result<()> {
    let far = [f32::MAX, 1e30, 1e20, 100., -100., -1e20, -1e30, f32::MIN];
    let everywhere = |f: &dyn Fn() -> Result<()>| -> Result<()> {
        levels().into_iter().try_for_each(|level| with_level(level, f))?;
        if ready() { with_emulation(false, f) } else { Ok(()) }
    };
    everywhere(&|| {
        for f in ALL {
            let x = Var::from_slice(&far, far.len(), &Device::Cpu)?;
            let y = f.apply(x.as_tensor())?;
            let slope = y
                .sum_all()?
                .backward()?
                .get(&x)
                .ok_or_else(|| candle_core::Error::msg("no gradient"))?
                .to_vec1::<f32>()?;
            for ((x, y), slope) in far.iter().zip(y.to_vec1::<f32>()?).zip(slope) {
                let low = if let Activation::Elu(alpha) = f { -alpha as f32 } else { 0. };
                let want = if *x > 0. { (*x, 1.) } else { (low, 0.) };
                assert!(
                    (y - want.0).abs() <= 1e-30 && (slope - want.1).abs() <= 1e-30,
                    "{f:?} at {x}: {y}, slope {slope}"
                );
            }
        }
        // As in PyTorch, what is no number stops no gradient.
        let x = Var::from_slice(&[f32::NAN], 1, &Device::Cpu)?;
        let slope = Activation::Relu.apply(x.as_tensor())?.sum_all()?.backward()?;
        let slope = slope.get(&x).ok_or_else(|| candle_core::Error::msg("no gradient"))?.to_vec1::<f32>()?;
        assert_eq!(slope, [1.]);
        Ok(())
    })
}
