use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_kernels_emulator::check;

use super::*;

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for log in [false, true] {
        for dims in [&[1][..], &[3, 1], &[5, 17], &[2, 3, 64], &[300, 65], &[1, 8192], &[3, 50_257], &[0, 4], &[4, 0]] {
            check(&Softmax { log }, &[random(1, dims)?], &[true])?;
        }
        check(&Softmax { log }, &[(random(1, &[4, 33])? * 1e4)?], &[true])?;
        check(&Softmax { log }, &[(random(1, &[4, 33])? + 1e4)?], &[true])?;
        check(&Softmax { log }, &[Tensor::full(6543.21f32, (3, 33), &Device::Cpu)?], &[true])?;
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

#[test]
fn long_rows_are_exact_at_every_level() -> Result<()> {
    for n in [50_257usize, 100_003] {
        let x = random(1, &[1, n])?;
        let numbers: Vec<f64> = x.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| f64::from(*v)).collect();
        let sum: f64 = numbers.iter().map(|v| v.exp()).sum();
        for level in levels() {
            let y = with_level(level, || softmax(&x))?.flatten_all()?.to_vec1::<f32>()?;
            let log = with_level(level, || log_softmax(&x))?.flatten_all()?.to_vec1::<f32>()?;
            for ((v, y), log) in numbers.iter().zip(y).zip(log) {
                let (want, of_log) = (v.exp() / sum, v - sum.ln());
                assert!((f64::from(y) - want).abs() < 2e-6 * want, "{level:?} {n}: {y} {want}");
                assert!((f64::from(log) - of_log).abs() < 2e-6 * of_log.abs(), "{level:?} {n}: {log} {of_log}");
            }
        }
    }
    Ok(())
}
