use candle_core::{DType, Device, Result, Tensor};
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::*;

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for kind in [NormKind::Layer, NormKind::Rms] {
        for dims in [&[1, 2][..], &[5, 17], &[2, 3, 64], &[65, 33], &[129, 16], &[0, 4]] {
            let c = dims[dims.len() - 1];
            let x = random(1, dims)?.affine(2., 0.7)?;
            let (w, b) = (random(2, &[c])?, random(3, &[c])?);
            for affine in [[true, true], [true, false], [false, true], [false, false]] {
                let op = Norm { kind, eps: 1e-5, affine };
                let mut inputs = vec![x.clone()];
                inputs.extend(affine[0].then(|| w.clone()));
                inputs.extend(affine[1].then(|| b.clone()));
                let wants = vec![true; inputs.len()];
                check(&op, &inputs, &wants)?;
            }
        }
    }
    Ok(())
}

#[test]
fn constant_and_huge_rows_are_finite_and_nan_stays_in_its_row() -> Result<()> {
    let rows = Tensor::new(&[[3f32, 3., 3.], [1e4, -1e4, 0.], [f32::NAN, 1., 2.], [1., 2., 3.]], &Device::Cpu)?;
    for y in [layer_norm(&rows, None, None, 1e-5)?, rms_norm(&rows, None, 1e-5)?] {
        let y = y.to_vec2::<f32>()?;
        assert!(y[2].iter().all(|v| v.is_nan()));
        assert!([0, 1, 3].iter().all(|&i| y[i].iter().all(|v| v.is_finite())), "{y:?}");
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    assert!(layer_norm(&zeros(&[2, 3])?, Some(&zeros(&[2])?), None, 1e-5).is_err());
    assert!(rms_norm(&zeros(&[2, 3])?, Some(&zeros(&[3, 1])?), 1e-5).is_err());
    assert!(layer_norm(&zeros(&[])?, None, None, 1e-5).is_err());
    Ok(())
}
