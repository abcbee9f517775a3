use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::*;

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    for dims in [&[1][..], &[32, 1], &[7, 13, 5], &[1000]] {
        let (p, t) = (random(1, dims)?, random(2, dims)?);
        for kind in [Kind::Squared, Kind::Absolute, Kind::Huber(1.), Kind::Huber(0.1)] {
            check(&RegressionLoss { kind }, &[p.clone(), t.clone()], &[true, true])?;
            check(&RegressionLoss { kind }, &[p.clone(), t.clone()], &[true, false])?;
        }
    }
    Ok(())
}

#[test]
fn losses_sum_over_outputs_and_average_over_the_batch() -> Result<()> {
    let p = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
    let t = p.zeros_like()?;
    assert_eq!(mse(&p, &t)?.to_scalar::<f32>()?, 15.);
    assert_eq!(mae(&p, &t)?.to_scalar::<f32>()?, 5.);
    assert_eq!(huber(&p, &t, 1.)?.to_scalar::<f32>()?, (0.5 + 1.5 + 2.5 + 3.5) / 2.);
    Ok(())
}

#[test]
fn bad_input_is_refused_and_nan_comes_through() -> Result<()> {
    let p = Tensor::new(&[f32::NAN, 1.], &Device::Cpu)?;
    assert!(mse(&p, &p.narrow(0, 0, 1)?).is_err());
    assert!(mse(&p.narrow(0, 0, 0)?, &p.narrow(0, 0, 0)?).is_err());
    assert!(huber(&p, &p, 0.).is_err());
    for loss in [mse(&p, &p)?, mae(&p, &p)?, huber(&p, &p, 1.)?] {
        assert!(loss.to_scalar::<f32>()?.is_nan());
    }
    Ok(())
}
