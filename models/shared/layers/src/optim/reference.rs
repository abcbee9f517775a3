//! The updates in plain candle operations: the specification, and what runs on devices without a kernel.

use candle_core::{Result, Tensor, Var};

use super::muon::{COEFFICIENTS, STEPS};
use super::{Moments, Rule, Update};

pub(super) fn update(u: Update, grad: &Tensor, var: &Var, state: &mut [Tensor]) -> Result<()> {
    let mut p = var.as_detached_tensor();
    let mut g = (grad * u.scale)?;
    match u.rule {
        Rule::AdamW(_) | Rule::Muon { .. } => p = (p * (1. - u.lr * u.weight_decay))?,
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
        (Rule::Muon { momentum }, [b]) => {
            *b = ((&*b * momentum)? + &g)?;
            let (rows, columns) = g.dims2()?;
            let direction = orthogonal(&(g + (&*b * momentum)?)?)?;
            p = (p - direction * (u.lr * 0.2 * (rows.max(columns) as f64).sqrt()))?;
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

pub(super) fn orthogonal(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    // x xᵀ is the smaller product if x is wide.
    let x = if rows > columns { x.t()? } else { x.clone() };
    let norm = (x.sqr()?.sum_all()?.sqrt()? + 1e-7)?;
    let mut x = x.contiguous()?.broadcast_div(&norm)?;
    let [a, b, c] = COEFFICIENTS.map(f64::from);
    for _ in 0..STEPS {
        let square = x.matmul(&x.t()?)?;
        let polynomial = ((&square * b)? + (square.matmul(&square)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    if rows > columns { x.t()?.contiguous() } else { Ok(x) }
}
