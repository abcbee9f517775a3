use candle_core::Result;
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::*;

const BOTH: [RopePairs; 2] = [RopePairs::Halves, RopePairs::Neighbours];

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for pairs in BOTH {
        for dims in [&[1, 2][..], &[3, 5, 6], &[2, 3, 65, 16], &[0, 4, 2]] {
            let [.., t, d] = dims else { continue };
            let (cos, sin) = rope_angles(3, *t, *d, 10_000., &Device::Cpu)?;
            check(&Rope { pairs }, &[random(1, dims)?, cos, sin], &[true, false, false])?;
        }
    }
    Ok(())
}

#[test]
fn scores_depend_on_the_distance_of_places_alone() -> Result<()> {
    let (q, k) = (random(1, &[1, 8])?, random(2, &[1, 8])?);
    for pairs in BOTH {
        let score = |i: usize, j: usize| -> Result<f32> {
            let at = |x: &Tensor, place| {
                let (cos, sin) = rope_angles(place, 1, 8, 100., &Device::Cpu)?;
                rope(x, &cos, &sin, pairs)
            };
            (at(&q, i)? * at(&k, j)?)?.sum_all()?.to_scalar()
        };
        assert!((score(7, 2)? - score(9, 4)?).abs() < 1e-5);
        assert!((score(7, 2)? - score(7, 3)?).abs() > 1e-3);
    }
    assert!(rope_angles(0, 1, 3, 100., &Device::Cpu).is_err());
    Ok(())
}
