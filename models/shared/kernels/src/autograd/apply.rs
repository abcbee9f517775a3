//! Applying an op: its inputs in the type that is in force, then its kernel.

use candle_core::{Result, Tensor, bail};

use super::autocast::cast;
use super::link::record;
use super::op::Op;

/// Applies `op` to `inputs`, recording the graph: by its kernels, or where there are none for the device or the type by its
/// reference. Backward passes over one graph must follow each other: two threads at once would mix their gradients. The tensors are locked for
/// reading meanwhile, and candle's locks let waiting writers go first: whoever writes parameters (a step of an optimizer) while another
/// thread applies ops to them may wait for ever.
pub fn apply<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let cast = cast(inputs, op.wide())?;
    record(op, cast.unwrap_or_else(|| inputs.iter().map(|t| (*t).clone()).collect()))
}

/// [`apply`] for an op with one output.
pub fn apply_one<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Tensor> {
    let name = op.name();
    match apply(op, inputs)?.pop() {
        Some(output) => Ok(output),
        None => bail!("{name}: no output"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::op::{Backward, Forward, Output, View};
    use super::*;

    /// Any number of inputs; outputs are their weighted sum and their product, over elements.
    struct SumAndProduct;

    impl Op for SumAndProduct {
        fn name(&self) -> &'static str {
            "sum-and-product"
        }

        fn reference(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
            let mut sum = x[0].affine(1., 0.)?;
            let mut product = x[0].clone();
            for (i, t) in x.iter().enumerate().skip(1) {
                sum = (sum + t.affine(1. + i as f64, 0.)?)?;
                product = (product * t)?;
            }
            Ok(vec![sum, product])
        }

        fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
            let tensor = |v: &View| Tensor::from_slice(v.f32()?, v.dims(), &Device::Cpu);
            let x = inputs.iter().map(tensor).collect::<Result<Vec<_>>>()?;
            let output = |t: Tensor| Ok(Output { data: t.flatten_all()?.to_vec1()?, shape: t.shape().clone() });
            Ok(Forward { outputs: self.reference(&x)?.into_iter().map(output).collect::<Result<_>>()?, saved: vec![] })
        }

        fn cpu_backward(&self, pass: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
            let n = pass.inputs[0].f32()?.len();
            let mut grads = vec![];
            for i in 0..pass.inputs.len() {
                let mut g = vec![0f32; n];
                for (e, g) in g.iter_mut().enumerate() {
                    if let Some(sum) = &pass.grads[0] {
                        *g += (1. + i as f32) * sum.f32()?[e];
                    }
                    if let Some(product) = &pass.grads[1] {
                        let others = (0..pass.inputs.len()).filter(|&j| j != i);
                        *g += others.map(|j| pass.inputs[j].f32().map(|x| x[e])).product::<Result<f32>>()?
                            * product.f32()?[e];
                    }
                }
                grads.push(pass.needs[i].then_some(g));
            }
            Ok(grads)
        }
    }

    #[test]
    fn gradients_reach_any_number_of_inputs_from_any_of_the_outputs() -> Result<()> {
        for n in 1..=9 {
            let vars = (0..n)
                .map(|i| Var::from_tensor(&Tensor::new(&[0.5f32 + i as f32, -1. - i as f32], &Device::Cpu)?))
                .collect::<Result<Vec<_>>>()?;
            for used in [[true, true], [true, false], [false, true]] {
                let loss = |outputs: Vec<Tensor>| -> Result<Tensor> {
                    let mut total = Tensor::new(0f32, &Device::Cpu)?;
                    for (o, _) in outputs.iter().zip(used).filter(|(_, used)| *used) {
                        total = (total + (o.sqr()?.sum_all()? + o.sum_all()?)?)?;
                    }
                    Ok(total)
                };
                // The middle input is a constant: it must neither get a gradient nor disturb the others'.
                let constant = vars[n / 2].as_detached_tensor();
                let inputs: Vec<&Tensor> = vars
                    .iter()
                    .enumerate()
                    .map(|(i, v)| if n > 2 && i == n / 2 { &constant } else { v.as_tensor() })
                    .collect();
                let owned: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
                let fused = loss(apply(SumAndProduct, &inputs)?)?.backward()?;
                let plain = loss(SumAndProduct.reference(&owned)?)?.backward()?;
                for (i, v) in vars.iter().enumerate() {
                    let values =
                        |g: &candle_core::backprop::GradStore| g.get(v).map(|g| g.to_vec1::<f32>()).transpose();
                    let (a, b) = (values(&fused)?, values(&plain)?);
                    assert_eq!(a.is_some(), !(n > 2 && i == n / 2), "input {i} of {n}");
                    let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
                    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.)), "{a:?} {b:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn strided_inputs_and_gradients_are_read_rightly() -> Result<()> {
        let x = Var::from_tensor(&Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu)?)?;
        let other = Tensor::new(&[[9f32, 1., 1.], [9., 2., 2.], [9., 3., 3.]], &Device::Cpu)?.narrow(1, 1, 2)?;
        let loss = |outputs: Vec<Tensor>| (outputs[0].t()?.sqr()? * outputs[1].t()?)?.sum_all()?.backward();
        let fused = loss(
            apply(SumAndProduct, &[&x.t()?, &other])?.into_iter().map(|t| t.reshape((3, 2))).collect::<Result<_>>()?,
        )?;
        let plain = loss(SumAndProduct.reference(&[x.t()?, other])?)?;
        let values = |g: &candle_core::backprop::GradStore| g.get(&x).map(|g| g.to_vec2::<f32>()).transpose();
        assert_eq!(values(&fused)?, values(&plain)?);
        assert!(values(&fused)?.is_some());
        Ok(())
    }

    #[test]
    fn without_a_gradient_nothing_is_recorded() -> Result<()> {
        let x = Tensor::new(&[1f32, 2.], &Device::Cpu)?;
        assert!(apply(SumAndProduct, &[&x, &x])?.iter().all(|o| !o.track_op()));
        Ok(())
    }
}
