use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_kernels_emulator::{check, ready, with_emulation};

use super::*;
use crate::random::{Purpose, Stream};

fn targets(rows: usize, classes: u32, ignored: bool) -> Result<(Tensor, usize)> {
    let mut stream = Stream::new(5, Purpose::Simulation, 0, 0);
    let mut numbers: Vec<i64> = (0..rows).map(|_| i64::from(stream.below(classes))).collect();
    if ignored {
        numbers.iter_mut().step_by(3).for_each(|t| *t = IGNORED);
    }
    let count = numbers.iter().filter(|t| **t >= 0).count();
    Ok((Tensor::from_vec(numbers, rows, &Device::Cpu)?, count))
}

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for (rows, classes) in [(1, 1), (2, 3), (5, 17), (300, 65), (3, 50_257)] {
        for smoothing in [0., 0.1] {
            for (ignored, scale, offset) in [(false, 1., 0.), (true, 3., 0.), (false, 1e4, 0.), (false, 1., 1e4)] {
                let (targets, count) = targets(rows, classes, ignored)?;
                if count > 0 {
                    let z = random(1, &[rows, classes as usize])?.affine(scale, offset)?;
                    check(&CrossEntropy { smoothing, count }, &[z, targets], &[true, false])?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn even_logits_cost_the_logarithm_of_the_classes_and_nan_comes_through() -> Result<()> {
    let z = Tensor::zeros((4, 65), DType::F32, &Device::Cpu)?;
    let t = Tensor::new(&[0u32, 7, 64, 1], &Device::Cpu)?;
    let loss = cross_entropy(&z, &t, CrossEntropyOptions::default())?.to_scalar::<f32>()?;
    assert!((f64::from(loss) - 65f64.ln()).abs() < 1e-6);
    let loss = cross_entropy(&(z * f64::NAN)?, &t, CrossEntropyOptions::default())?.to_scalar::<f32>()?;
    assert!(loss.is_nan());
    Ok(())
}

#[test]
fn bad_targets_are_refused_and_ignored_ones_do_not_count() -> Result<()> {
    let z = random(1, &[3, 5])?;
    let loss = |t: &[i64], ignore_index| {
        let options = CrossEntropyOptions { label_smoothing: 0., ignore_index };
        cross_entropy(&z, &Tensor::new(t, &Device::Cpu)?, options)
    };
    let message = |r: Result<Tensor>| r.map(|_| ()).map_err(|e| e.to_string()).unwrap_err();
    assert!(message(loss(&[0, 5, 1], None)).contains("target 5 is none of 5 classes"));
    assert!(message(loss(&[0, -100, 1], None)).contains("-100"));
    assert!(message(loss(&[7, 7, 7], Some(7))).contains("no target counts"));
    assert!(message(loss(&[1, 2], None)).contains("do not fit"));
    let without = cross_entropy(&z.narrow(0, 0, 2)?, &Tensor::new(&[1i64, 2], &Device::Cpu)?, Default::default())?;
    assert_eq!(loss(&[1, 2, -100], Some(-100))?.to_scalar::<f32>()?, without.to_scalar::<f32>()?);
    Ok(())
}

#[test]
fn a_gpu_does_not_wait_for_targets_and_answers_a_bad_one_with_nan() -> Result<()> {
    if ready() {
        let z = random(1, &[3, 5])?;
        let loss = |t: &[i64]| -> Result<f32> {
            let t = Tensor::new(t, &Device::Cpu)?;
            with_emulation(false, || cross_entropy(&z, &t, Default::default()))?.to_scalar()
        };
        for bad in [5, -1, -100, i64::MAX] {
            assert!(loss(&[0, bad, 1])?.is_nan(), "{bad}");
        }
        assert!(loss(&[0, 4, 1])?.is_finite());
    }
    Ok(())
}

#[test]
fn large_vocabularies_are_exact_at_every_level() -> Result<()> {
    let n = 50_257;
    let z = random(1, &[1, n])?;
    let numbers: Vec<f64> = z.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| f64::from(*v)).collect();
    let want = numbers.iter().map(|v| v.exp()).sum::<f64>().ln() - numbers[7];
    for level in levels() {
        let t = Tensor::new(&[7i64], &Device::Cpu)?;
        let loss = with_level(level, || cross_entropy(&z, &t, CrossEntropyOptions::default()))?.to_scalar::<f32>()?;
        assert!((f64::from(loss) - want).abs() < 2e-6 * want, "{level:?}: {loss} {want}");
    }
    Ok(())
}
