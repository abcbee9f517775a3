use candle_core::{Device, Result, Tensor};

use super::*;
use crate::ops::glue::check::{check, random, same_bits_on_any_threads};

#[test]
fn kernel_and_gradients_agree_with_the_reference() -> Result<()> {
    for dims in [[1, 1, 1], [2, 5, 3], [1, 2, 40], [3, 70, 17]] {
        let inputs = [random(1, &dims)?, random(2, &dims)?];
        check(&SequenceLoss, &inputs, &[true, true])?;
        check(&SequenceLoss, &inputs, &[true, false])?;
    }
    Ok(())
}

#[test]
fn the_parts_are_what_they_are_called() -> Result<()> {
    // Two samples of two steps of one feature: differences in time never cross samples.
    let o = Tensor::new(&[[[1f32], [-2.]], [[5.], [5.]]], &Device::Cpu)?;
    let y = Tensor::new(&[[[0f32], [0.]], [[5.], [4.]]], &Device::Cpu)?;
    assert_eq!(sequence_loss(&o, &y)?.to_vec1::<f32>()?, [6. / 4., 13. / 4., 9. / 4.]);
    Ok(())
}

#[test]
fn bad_input_is_refused_and_threads_change_no_bit() -> Result<()> {
    let o = random(1, &[2, 70, 33])?;
    assert!(sequence_loss(&o, &o.narrow(1, 0, 69)?).is_err());
    assert!(sequence_loss(&o.narrow(1, 0, 0)?, &o.narrow(1, 0, 0)?).is_err());
    assert!(sequence_loss(&o.flatten_all()?, &o.flatten_all()?).is_err());
    let y = random(2, &[2, 70, 33])?;
    same_bits_on_any_threads(|| {
        let o = candle_core::Var::from_tensor(&o)?;
        let parts = sequence_loss(&o, &y)?;
        let grads = parts.sum_all()?.backward()?;
        let grad = grads.get(&o).map(|g| g.flatten_all()?.to_vec1()).transpose()?.unwrap_or_default();
        Ok(vec![parts.to_vec1()?, grad])
    })
}
