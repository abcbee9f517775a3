use candle_core::{Device, Result, Tensor, Var};
use zoo_kernels::check::random;
use zoo_kernels_emulator::{check, ready, with_emulation};

use super::*;
use crate::random::Purpose;

fn ids(dims: &[usize], rows: u32) -> Result<Tensor> {
    let mut stream = Stream::new(5, Purpose::Simulation, 0, 0);
    let ids: Vec<i64> = (0..dims.iter().product()).map(|_| i64::from(stream.below(rows))).collect();
    Tensor::from_vec(ids, dims, &Device::Cpu)
}

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    let plain = Embedding { first: 0, positions: false, dropout: None };
    for (dims, rows, c) in
        [(&[1][..], 1, 1), (&[7], 3, 17), (&[2, 3, 5], 11, 64), (&[0], 4, 3), (&[200], 9, 130), (&[17], 50_257, 3)]
    {
        check(&plain, &[ids(dims, rows)?, random(1, &[rows as usize, c])?], &[false, true])?;
    }
    let dropout = Dropout::new(0.3, Stream::new(1, Purpose::Dropout, 2, 3))?;
    for (dims, first, c) in [([1, 1], 0, 1), ([3, 5], 2, 17), ([20, 8], 0, 65)] {
        for dropout in [None, Some(dropout.clone())] {
            let op = Embedding { first, positions: true, dropout };
            let inputs = [ids(&dims, 6)?, random(1, &[6, c])?, random(2, &[8, c])?];
            check(&op, &inputs, &[false, true, true])?;
            check(&op, &inputs, &[false, false, true])?;
        }
    }
    Ok(())
}

#[test]
fn bad_ids_are_refused_and_nan_comes_through() -> Result<()> {
    let table = Tensor::new(&[[1f32, 2.], [f32::NAN, 4.]], &Device::Cpu)?;
    let y = embedding(&Tensor::new(&[1u32, 0], &Device::Cpu)?, &table)?.to_vec2::<f32>()?;
    assert!(y[0][0].is_nan() && y[0][1] == 4. && y[1] == [1., 2.]);
    let message = |ids: &Tensor| embedding(ids, &table).map(|_| ()).map_err(|e| e.to_string()).unwrap_err();
    assert!(message(&Tensor::new(&[0u32, 2], &Device::Cpu)?).contains("id 2 is none of 2 rows"));
    assert!(message(&Tensor::new(&[-1i64], &Device::Cpu)?).contains("id -1"));
    assert!(message(&Tensor::new(&[0.5f32], &Device::Cpu)?).contains("integers"));
    let two = Tensor::new(&[[0u32, 1, 0]], &Device::Cpu)?;
    assert!(embedding_with_positions(&two, &table, &table, 0, None).is_err());
    Ok(())
}

#[test]
fn a_gpu_does_not_wait_for_ids_and_answers_a_bad_one_with_nan() -> Result<()> {
    if ready() {
        let table = Var::from_tensor(&random(1, &[2, 3])?)?;
        for bad in [2, -1, i64::MAX] {
            let ids = Tensor::new(&[1, bad, 1], &Device::Cpu)?;
            let (y, grads) = with_emulation(false, || {
                let y = embedding(&ids, &table)?;
                Ok::<_, candle_core::Error>((y.to_vec2::<f32>()?, y.sum_all()?.backward()?))
            })?;
            assert!(y[1].iter().all(|v| v.is_nan()) && y[0] == y[2] && y[0].iter().all(|v| v.is_finite()), "{bad}");
            let grad = grads.get(&table).map(|g| g.to_vec2::<f32>()).transpose()?;
            assert_eq!(grad, Some(vec![vec![0.; 3], vec![2.; 3]]), "{bad}");
        }
    }
    Ok(())
}
