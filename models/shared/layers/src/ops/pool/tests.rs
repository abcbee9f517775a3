use candle_core::Result;
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::*;

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for dims in [[1, 1, 1], [3, 5, 7], [2, 20, 128], [70, 3, 33], [1, 8192, 3], [0, 4, 3]] {
        let inputs = [random(1, &dims)?, random(2, &dims[1..2])?];
        for wants in [[true, true], [true, false], [false, true]] {
            check(&Pool, &inputs, &wants)?;
        }
    }
    Ok(())
}

#[test]
fn other_shapes_are_refused() -> Result<()> {
    let x = random(1, &[2, 3, 4])?;
    let message = pool(&x, &random(2, &[4])?).unwrap_err().to_string();
    assert!(message.starts_with("pool: weights [4] for [2, 3, 4], expected (3)"), "{message}");
    assert!(pool(&x.flatten_all()?, &random(2, &[3])?).is_err());
    Ok(())
}
