use candle_core::Result;
use zoo_kernels::check::random;
use zoo_kernels_emulator::check;

use super::*;

const BOTH: [RopePairs; 2] = [RopePairs::Halves, RopePairs::Neighbours];

#[test]
fn kernels_and_gradients_agree_with_the_reference() -> Result<()> {
    for pairs in BOTH {
        for dims in [&[1, 2][..], &[3, 5, 6], &[2, 3, 65, 16], &[1, 8192, 2], &[17, 130], &[0, 4, 2]] {
            let [.., t, d] = dims else { continue };
            let (cos, sin) = rope_angles(3, *t, *d, 10_000., &Device::Cpu)?;
            check(&Rope { pairs, heads: 1 }, &[random(1, dims)?, cos, sin], &[true, false, false])?;
        }
    }
    Ok(())
}

#[test]
fn heads_may_lie_side_by_side() -> Result<()> {
    for pairs in BOTH {
        for (b, t, heads, d) in [(1, 1, 2, 2), (2, 5, 3, 6), (2, 65, 4, 16), (0, 3, 2, 4)] {
            let (cos, sin) = rope_angles(3, t, d, 10_000., &Device::Cpu)?;
            let x = random(1, &[b, t, heads * d])?;
            check(&Rope { pairs, heads }, &[x.clone(), cos.clone(), sin.clone()], &[true, false, false])?;
            let apart = x.reshape((b, t, heads, d))?.transpose(1, 2)?.contiguous()?;
            let turned = rope(&apart, &cos, &sin, pairs)?.transpose(1, 2)?.reshape((b, t, heads * d))?;
            let side_by_side = rope_heads(&x, heads, &cos, &sin, pairs)?;
            assert_eq!(
                side_by_side.flatten_all()?.to_vec1::<f32>()?,
                turned.flatten_all()?.to_vec1::<f32>()?,
                "{pairs:?} {heads}"
            );
            assert!(rope_heads(&x, heads + 1, &cos, &sin, pairs).is_err());
        }
    }
    Ok(())
}

/// The frequencies that `transformers` 5.24 computes (`ROPE_INIT_FUNCTIONS["llama3"]`) for heads of 16, base 500,000, factor 8,
/// low 1, high 4 and a first context of 64 positions.
#[test]
fn frequencies_are_scaled_as_llama_3_has_it() {
    let scaling = RopeScaling::Llama3 { factor: 8., low: 1., high: 4., context: 64 };
    let scaled = rope_frequencies(16, 500_000., Some(scaling));
    let expected = [
        1.,
        0.07940301299095154,
        0.004700753837823868,
        0.0009115831344388425,
        0.00017677668074611574,
        3.428102354519069e-05,
        6.647869668086059e-06,
        1.289173155782919e-06,
    ];
    assert!(scaled.iter().zip(expected).all(|(s, e)| (s / e - 1.).abs() < 1e-6), "{scaled:?}");
    let plain = rope_frequencies(16, 500_000., None);
    let linear = rope_frequencies(16, 500_000., Some(RopeScaling::Linear(4.)));
    assert!(plain.iter().zip(linear).all(|(p, l)| (p / 4. - l).abs() < 1e-12));
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
