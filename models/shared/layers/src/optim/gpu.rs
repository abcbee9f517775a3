use candle_core::{Result, Tensor, bail};

use super::{Moments, Rule, Update};
use crate::ops::glue::gpu::{Arg, Gpu, Grid, Module, module};
use crate::ops::glue::{View, memories_mut};

const KERNELS: Module = module!("optim");
/// Elements whose squares a group sums.
const CHUNK: usize = 16 * 1024;

/// Moves `tensors[0]` (parameter) and `tensors[1..]` (state), f32, by `grad`, in place.
pub(super) fn update(gpu: &Gpu, u: Update, grad: &Tensor, tensors: &[&Tensor]) -> Result<()> {
    let grad = grad.contiguous()?;
    let view = View::new(&grad);
    let n = view.count();
    let fields = fields(u);
    memories_mut(tensors, &mut |memories| {
        let [p, state @ ..] = memories else { bail!("optimizer: no parameter") };
        let mut args = vec![Arg::Change(p), Arg::Read(view.slice()?)];
        let (kernel, states) = match u.rule {
            Rule::AdamW(_) | Rule::Adam(_) => ("adam", 2),
            Rule::Sgd { .. } => ("sgd", 1),
            Rule::RmsProp { .. } => ("rmsprop", 2),
            Rule::Muon { .. } => bail!("optimizer: Muon has no kernel"),
        };
        let there = state.len();
        args.extend(state.iter_mut().map(Arg::Change));
        // What the rule does not keep is not touched.
        for _ in there..states {
            args.push(Arg::Read(view.slice()?));
        }
        args.extend([Arg::Count(n), Arg::Fields(&fields)]);
        gpu.launch(&KERNELS, kernel, Grid::each(n), &mut args)
    })
}

fn fields(u: Update) -> [u32; 13] {
    let decoupled = matches!(u.rule, Rule::AdamW(_));
    let (keep, coupled) = if decoupled { (1. - u.lr * u.weight_decay, 0.) } else { (1., u.weight_decay) };
    let (mut lr, mut beta1, mut beta2, mut root, mut eps) = (u.lr, 0., 0., 1., 0.);
    let (mut momentum, mut nesterov) = (0., false);
    match u.rule {
        Rule::AdamW(Moments { beta1: b1, beta2: b2, eps: e })
        | Rule::Adam(Moments { beta1: b1, beta2: b2, eps: e }) => {
            (beta1, beta2, eps) = (b1, b2, e);
            lr /= 1. - beta1.powf(u.step as f64);
            root = 1. / (1. - beta2.powf(u.step as f64)).sqrt();
        }
        Rule::Sgd { momentum: m, nesterov: n } => (momentum, nesterov) = (m, n),
        Rule::RmsProp { alpha, eps: e, momentum: m } => (beta2, eps, momentum) = (alpha, e, m),
        Rule::Muon { .. } => {}
    }
    let numbers = [u.scale, keep, coupled, lr, beta1, 1. - beta1, beta2, 1. - beta2, root, eps, momentum];
    let mut fields = [0; 13];
    fields[..11].copy_from_slice(&numbers.map(|v| (v as f32).to_bits()));
    fields[11] = nesterov.into();
    fields[12] = (momentum != 0.).into();
    fields
}

/// The sum of the squares of all of `tensors`, with one number that comes back to the host; infinite beyond f32's range.
pub(super) fn squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<f64> {
    let chunks = |t: &Tensor| t.elem_count().div_ceil(CHUNK);
    let mut parts = gpu.floats(tensors.iter().map(|t| chunks(t)).sum())?;
    let mut at = 0;
    for t in tensors {
        let t = t.contiguous()?;
        let view = View::new(&t);
        let args = &mut [
            Arg::Read(view.slice()?),
            Arg::Write(&mut parts),
            Arg::Count(at),
            Arg::Count(view.count()),
            Arg::Count(CHUNK),
        ];
        gpu.launch(&KERNELS, "squares", Grid::rows(chunks(&t), CHUNK), args)?;
        at += chunks(&t);
    }
    gpu.wide().totals(&parts, 1, 1.)?.into_tensor(()).to_scalar::<f32>().map(f64::from)
}
