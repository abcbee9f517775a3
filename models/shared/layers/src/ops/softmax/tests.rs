use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_kernels_emulator::check;

use super::*;

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for log in [false, true] {
        for dims in [&[1][..], &[3, 1], &[5, 17], &[2, 3, 64], &[300, 65], &[0, 4], &[4, 0]] {
            check(&Softmax { log }, &[random(1, dims)?], &[true])?;
        }
        check(&Softmax { log }, &[(random(1, &[4, 33])? * 1e4)?], &[true])?;
        check(&Softmax { log }, &[(random(1, &[4, 33])? + 1e4)?], &[true])?;
    }
    Ok(())
}

#[test]
fn masked_rows_are_zeros_and_nan_stays_in_its_row() -> Result<()> {
    const INF: f32 = f32::INFINITY;
    let x = Tensor::new(&[[-INF, -INF, -INF], [1., f32::NAN, 2.], [0., -INF, 0.]], &Device::Cpu)?;
    for level in levels() {
        let (y, log) = with_level(level, || Ok::<_, candle_core::Error>((softmax(&x)?, log_softmax(&x)?)))?;
        let (y, log) = (y.to_vec2::<f32>()?, log.to_vec2::<f32>()?);
        assert_eq!((&y[0], &y[2]), (&vec![0.; 3], &vec![0.5, 0., 0.5]), "{level:?}");
        assert!(log[0].iter().all(|v| *v == -INF) && log[2][1] == -INF, "{level:?}");
        assert!(y[1].iter().chain(&log[1]).all(|v| v.is_nan()), "{level:?}");
    }
    // The reference says the same.
    let y = Softmax { log: false }.reference(&[x])?[0].to_vec2::<f32>()?;
    assert_eq!((&y[0], &y[2]), (&vec![0.; 3], &vec![0.5, 0., 0.5]));
    Ok(())
}
