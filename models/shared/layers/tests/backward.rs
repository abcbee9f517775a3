//! The backward pass over the ops, against candle's.

use candle_core::{D, Device, Result, Tensor, Var};
use zoo_kernels::check::random;
use zoo_layers::ops::{
    Activation, AttentionOptions, add_dropout, attention, backward_scaled, foreign, layer_norm, linear, mse,
};
use zoo_layers::{Lstm, LstmConfig, Mode, Params};

fn var(seed: u64, dims: &[usize]) -> Result<Var> {
    Var::from_tensor(&random(seed, dims)?)
}

/// Both ways to the gradients of `vars`, and whether ours was taken.
fn compare(loss: &Tensor, vars: &[&Var], ours: bool) -> Result<()> {
    assert_eq!(foreign(loss).is_empty(), ours, "{:?}", foreign(loss));
    let (expected, found) = ((loss * 3.)?.backward()?, backward_scaled(loss, 3.)?);
    for (i, var) in vars.iter().enumerate() {
        let (Some(a), Some(b)) = (expected.get(var), found.get(var)) else {
            assert!(expected.get(var).is_none() && found.get(var).is_none(), "{i}");
            continue;
        };
        let (error, size) = ((a - b)?.abs()?.max_all()?, a.abs()?.max_all()?);
        let (error, size) = (error.to_scalar::<f32>()?, size.to_scalar::<f32>()?);
        assert!(error <= 1e-6 * size && size > 0., "{i}: off by {error} of {size}");
        assert!(b.dims() == var.dims() && !b.track_op());
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_candle_through_views_shared_results_and_ranges() -> Result<()> {
    let (x, w, gain, target) = (var(1, &[2, 5, 6])?, var(2, &[18, 6])?, var(3, &[6])?, random(4, &[2, 5, 6])?);
    let identity = Activation::Identity;
    // Ranges, one of them twice; a norm that two use; a weight in whole and in part; turned results.
    let n = layer_norm(&x, Some(&gain), None, 1e-5)?;
    let qkv = linear(&n, &w, None, identity)?;
    let part = |i: usize| qkv.narrow(D::Minus1, 6 * i, 6);
    let options = || AttentionOptions { causal: true, scale: None, dropout: None };
    let o = attention(&part(0)?, &part(1)?, &part(2)?, 2, None, options())?;
    let o = add_dropout(&o, &part(1)?, None)?;
    let o = add_dropout(&o, &n, None)?;
    let square = w.as_tensor().narrow(0, 3, 6)?;
    let turned = linear(&o.transpose(0, 1)?, &square, None, Activation::Gelu)?.transpose(0, 1)?;
    let vars = [&x, &w, &gain];
    compare(&mse(&turned, &target)?, &vars, true)?;
    // With an operation of candle's anywhere among them it is candle's.
    compare(&mse(&(turned * 2.)?, &target)?, &vars, false)
}

#[test]
fn any_of_several_outputs_and_other_variables_may_be_left_out() -> Result<()> {
    let (x, unused) = (var(1, &[3, 4, 2])?, var(2, &[2])?);
    let params = Params::init(1, &Device::Cpu);
    let config = LstmConfig { input: 2, hidden: 5, layers: 2, dropout: 0. };
    let lstm = Lstm::new(config, params.builder())?;
    let weights: Vec<Var> = params.trainable().into_iter().map(|p| p.var).collect();
    let vars: Vec<&Var> = [&x, &unused].into_iter().chain(&weights).collect();
    for found in [lstm.forward(&x, Mode::Eval)?.outputs, lstm.forward_last(&x, Mode::Eval)?] {
        compare(&mse(&found, &found.zeros_like()?)?, &vars, true)?;
    }
    Ok(())
}
