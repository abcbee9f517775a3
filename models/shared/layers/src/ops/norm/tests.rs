use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd::{levels, with_level};
use zoo_kernels_emulator::{check, ready, with_emulation};

use super::*;

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for kind in [NormKind::Layer, NormKind::Rms] {
        for dims in [&[1, 2][..], &[5, 17], &[2, 3, 64], &[65, 33], &[129, 16], &[3, 8192], &[0, 4]] {
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

/// Runs `f` on the CPU at every level, and by the GPU kernels.
fn everywhere(f: impl Fn() -> Result<()>) -> Result<()> {
    levels().into_iter().try_for_each(|level| with_level(level, &f))?;
    if ready() { with_emulation(false, f) } else { Ok(()) }
}

#[test]
fn rows_of_one_value_are_zero_and_large_means_cost_nothing() -> Result<()> {
    everywhere(|| {
        for width in [1usize, 3, 33, 128, 4096] {
            let constant = Tensor::full(6543.21f32, (2, width), &Device::Cpu)?;
            let y = layer_norm(&constant, None, None, 1e-5)?.flatten_all()?.to_vec1::<f32>()?;
            assert!(y.iter().all(|v| *v == 0.), "{width}: {:?}", &y[..width.min(4)]);
        }
        for (width, mean) in [(33usize, 1e5f32), (768, 1e5), (4096, -1e6)] {
            // One element far from the others comes first.
            let x = random(1, &[3, width])?.affine(1., f64::from(mean))?.flatten_all()?.to_vec1::<f32>()?;
            let x: Vec<f32> = x.iter().enumerate().map(|(i, v)| if i == width { 10. * mean } else { *v }).collect();
            let var = Var::from_vec(x.clone(), (3, width), &Device::Cpu)?;
            let dy = random(2, &[3, width])?;
            let y = layer_norm(var.as_tensor(), None, None, 1e-5)?;
            let grads = (&y * &dy)?.sum_all()?.backward()?;
            let dx = grads.get(&var).ok_or_else(|| candle_core::Error::msg("no gradient"))?.to_vec2::<f32>()?;
            let (y, dy) = (y.to_vec2::<f32>()?, dy.to_vec2::<f32>()?);
            for (row, x) in x.chunks(width).enumerate() {
                let of = |f: &dyn Fn(usize) -> f64| (0..width).map(f).sum::<f64>() / width as f64;
                let at = |i: usize| f64::from(x[i]);
                let mean = of(&at);
                let r = 1. / (of(&|i| (at(i) - mean).powi(2)) + 1e-5).sqrt();
                let hat = |i: usize| (at(i) - mean) * r;
                let g = |i: usize| f64::from(dy[row][i]);
                let (level, slant) = (of(&g), of(&|i| g(i) * hat(i)));
                for i in 0..width {
                    let error = (f64::from(y[row][i]) - hat(i)).abs();
                    assert!(error < 4e-6 * hat(i).abs().max(1.), "{width} {mean}: {error}");
                    let want = r * (g(i) - level - hat(i) * slant);
                    let error = (f64::from(dx[row][i]) - want).abs();
                    assert!(error < 1e-5 * r, "{width} {mean}: {error}, gradient {want}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    assert!(layer_norm(&zeros(&[2, 3])?, Some(&zeros(&[2])?), None, 1e-5).is_err());
    assert!(rms_norm(&zeros(&[2, 3])?, Some(&zeros(&[3, 1])?), 1e-5).is_err());
    assert!(layer_norm(&zeros(&[])?, None, None, 1e-5).is_err());
    Ok(())
}
