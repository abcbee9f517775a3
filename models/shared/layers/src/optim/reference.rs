//! The updates in plain candle operations: the specification, and what runs on devices without a kernel.

use candle_core::{Result, Tensor, Var};

use super::{Moments, Rule, Update};

pub(super) fn update(u: Update, grad: &Tensor, var: &Var, state: &mut [Tensor]) -> Result<()> {
    let mut p = var.as_detached_tensor();
    let mut g = (grad * u.scale)?;
    match u.rule {
        Rule::AdamW(_) => p = (p * (1. - u.lr * u.weight_decay))?,
        _ => g = (g + (&p * u.weight_decay)?)?,
    }
    match (u.rule, &mut *state) {
        (Rule::AdamW(Moments { beta1, beta2, eps }) | Rule::Adam(Moments { beta1, beta2, eps }), [m, v]) => {
            *m = ((&*m * beta1)? + (&g * (1. - beta1))?)?;
            *v = ((&*v * beta2)? + (g.sqr()? * (1. - beta2))?)?;
            let (c1, c2) = (1. - beta1.powf(u.step as f64), 1. - beta2.powf(u.step as f64));
            let root = ((v.sqrt()? / c2.sqrt())? + eps)?;
            p = (p - (&*m / root)? * (u.lr / c1))?;
        }
        (Rule::Sgd { momentum, nesterov }, [b]) => {
            *b = ((&*b * momentum)? + &g)?;
            let direction = if nesterov { (g + (&*b * momentum)?)? } else { b.clone() };
            p = (p - direction * u.lr)?;
        }
        (Rule::RmsProp { alpha, eps, momentum }, [v, rest @ ..]) => {
            *v = ((&*v * alpha)? + (g.sqr()? * (1. - alpha))?)?;
            let mut direction = (g / (v.sqrt()? + eps)?)?;
            if let [b] = rest {
                *b = ((&*b * momentum)? + direction)?;
                direction = b.clone();
            }
            p = (p - direction * u.lr)?;
        }
        _ => p = (p - g * u.lr)?,
    }
    var.set(&p)
}
