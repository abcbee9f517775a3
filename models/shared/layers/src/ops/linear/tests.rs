use candle_core::{DType, Device, Result, Tensor};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels_emulator::check;

use super::*;

use crate::ops::activation::Activation::{Elu, Gelu, GeluTanh, Identity, Relu, Silu};

const ALL: [Activation; 6] = [Identity, Relu, Gelu, GeluTanh, Silu, Elu(1.)];

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    for (dims, n) in [
        (vec![1, 1], 1),
        (vec![5, 3], 4),
        (vec![2, 3, 50], 1),
        (vec![33, 129], 65),
        (vec![0, 4], 3),
        (vec![7], 5),
        (vec![3, 8192], 2),
        (vec![2, 3], 50_257),
    ] {
        let k = dims[dims.len() - 1];
        let (x, w, b) = (random(1, &dims)?, random(2, &[n, k])?, random(3, &[n])?);
        for activation in ALL {
            check(&Linear { activation }, &[x.clone(), w.clone(), b.clone()], &[true; 3])?;
            check(&Linear { activation }, &[x.clone(), w.clone()], &[false, true])?;
        }
    }
    Ok(())
}

#[test]
fn nan_and_huge_values_come_through() -> Result<()> {
    let x = Tensor::new(&[[f32::NAN, 1.], [1e4, -1e4]], &Device::Cpu)?;
    let w = Tensor::new(&[[1f32, 1.], [1e4, 0.]], &Device::Cpu)?;
    for activation in ALL {
        let y = linear(&x, &w, None, activation)?.to_vec2::<f32>()?;
        assert!(y[0].iter().all(|v| v.is_nan()), "{activation:?} {y:?}");
        assert!(y[1].iter().all(|v| v.is_finite()), "{activation:?} {y:?}");
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let w = zeros(&[3, 4])?;
    assert!(linear(&zeros(&[2, 5])?, &w, None, Activation::Identity).is_err());
    assert!(linear(&zeros(&[2, 4])?, &w, Some(&zeros(&[4])?), Activation::Identity).is_err());
    assert!(linear(&zeros(&[])?, &w, None, Activation::Identity).is_err());
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    same_bits_on_any_threads(|| {
        // Large enough for the products to be shared among threads.
        let vars = [random(1, &[257, 96])?, random(2, &[65, 96])?, random(3, &[65])?];
        let vars = vars.iter().map(candle_core::Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let y = linear(&vars[0], &vars[1], Some(&vars[2]), Activation::Relu)?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        let grad = |v| grads.get(v).ok_or_else(|| candle_core::Error::msg("no gradient"))?.flatten_all()?.to_vec1();
        let mut all = vec![y.flatten_all()?.to_vec1()?];
        for v in &vars {
            all.push(grad(v.as_tensor())?);
        }
        Ok(all)
    })
}
