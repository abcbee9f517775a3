use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels_emulator::check;

use super::*;

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    for dims in [[1, 1, 1], [2, 5, 3], [1, 2, 40], [3, 70, 17], [1, 8192, 3]] {
        let inputs = [random(1, &dims)?, random(2, &dims)?];
        let op = SequenceLoss { weights: [1., 0.3, 0.2] };
        check(&op, &inputs, &[true, true])?;
        check(&op, &inputs, &[true, false])?;
    }
    Ok(())
}

#[test]
fn the_parts_are_what_they_are_called() -> Result<()> {
    // Two samples of two steps of one feature: differences in time never cross samples.
    let o = Tensor::new(&[[[1f32], [-2.]], [[5.], [5.]]], &Device::Cpu)?;
    let y = Tensor::new(&[[[0f32], [0.]], [[5.], [4.]]], &Device::Cpu)?;
    let (total, parts) = sequence_loss(&o, &y, [1., 2., 4.])?;
    assert_eq!(parts.to_vec1::<f32>()?, [6. / 4., 13. / 4., 9. / 4.]);
    assert_eq!(total.to_scalar::<f32>()?, 17.);
    Ok(())
}

#[test]
fn bad_input_is_refused_and_threads_change_no_bit() -> Result<()> {
    let o = random(1, &[2, 70, 33])?;
    let wrong = |o: &Tensor, y: &Tensor| sequence_loss(o, y, [1.; 3]).is_err();
    assert!(wrong(&o, &o.narrow(1, 0, 69)?));
    assert!(wrong(&o.narrow(1, 0, 0)?, &o.narrow(1, 0, 0)?));
    assert!(wrong(&o.flatten_all()?, &o.flatten_all()?));
    let y = random(2, &[2, 70, 33])?;
    same_bits_on_any_threads(|| {
        let o = candle_core::Var::from_tensor(&o)?;
        let (total, parts) = sequence_loss(&o, &y, [1.; 3])?;
        let grads = total.backward()?;
        let grad = grads.get(&o).map(|g| g.flatten_all()?.to_vec1()).transpose()?.unwrap_or_default();
        Ok(vec![parts.to_vec1()?, grad])
    })
}
