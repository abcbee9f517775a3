use candle_core::{Device, Result, Tensor};
use zoo_kernels::check::{random, same_bits_on_any_threads};
use zoo_kernels_emulator::check;

use super::*;

fn weight(bits: Bits, [n, k]: [usize; 2]) -> Result<Quantized> {
    let most = if bits == Bits::Four { 8. } else { 128. };
    let draw = |seed: u64, n: usize| random(seed, &[n])?.to_vec1::<f32>();
    let codes: Vec<i8> = draw(1, n * k)?.iter().map(|v| (v * 0.4 * most).clamp(-most, most - 1.) as i8).collect();
    let groups = n * k / bits.group();
    Quantized::new(bits, [n, k], &codes, &draw(2, groups)?, &draw(3, groups)?)
}

#[test]
fn kernel_and_gradient_agree_with_the_reference() -> Result<()> {
    for bits in [Bits::Four, Bits::Eight] {
        for (dims, n) in [(vec![32], 5), (vec![2, 3, 64], 33), (vec![40, 96], 7), (vec![32], 50_257), (vec![0, 32], 4)]
        {
            let weight = weight(bits, [n, dims[dims.len() - 1]])?;
            check(&QuantizedLinear { weight }, &[random(4, &dims)?], &[true])?;
        }
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    same_bits_on_any_threads(|| {
        let weight = weight(Bits::Four, [1100, 512])?;
        let few = quantized_linear(&random(5, &[2, 512])?, &weight)?.flatten_all()?.to_vec1()?;
        let x = candle_core::Var::from_tensor(&random(6, &[65, 512])?)?;
        let many = quantized_linear(x.as_tensor(), &weight)?;
        let grads = many.sqr()?.sum_all()?.backward()?;
        let dx = grads.get(&x).ok_or_else(|| candle_core::Error::msg("no gradient"))?.flatten_all()?.to_vec1()?;
        Ok(vec![few, many.flatten_all()?.to_vec1()?, dx])
    })
}

#[test]
fn rows_of_a_table_are_those_of_the_dequantized_one() -> Result<()> {
    let weight = weight(Bits::Eight, [9, 32])?;
    let ids = Tensor::new(&[[3i64, 8], [0, 3]], &Device::Cpu)?;
    let rows = weight.rows(&ids)?;
    assert_eq!(rows.dims(), [2, 2, 32]);
    let all = weight.dequantized()?.index_select(&ids.flatten_all()?, 0)?;
    assert_eq!(rows.flatten_all()?.to_vec1::<f32>()?, all.flatten_all()?.to_vec1::<f32>()?);
    assert!(weight.rows(&Tensor::new(&[9i64], &Device::Cpu)?).is_err());
    assert!(quantized_linear(&random(1, &[2, 31])?, &weight).is_err());
    Ok(())
}
