use candle_core::{Result, Tensor, bail};

use super::{Job, Moments, Rule, Update};
use crate::ops::glue::gpu::{Arg, Gpu, Grid, Module, THREADS, module};
use crate::ops::glue::{View, memories_mut};

const KERNELS: Module = module!("optim");
/// Parameters that a launch moves.
const SETS: usize = 6;
/// Tensors whose squares a launch sums.
const NORMED: usize = 16;
/// Elements whose squares a group sums.
const CHUNK: usize = 16 * 1024;

/// Does the jobs in place; all tensors are f32.
pub(super) fn update(gpu: &Gpu, jobs: &[Job]) -> Result<()> {
    for jobs in jobs.chunks(SETS) {
        let grads = jobs.iter().map(|job| job.grad.contiguous()).collect::<Result<Vec<_>>>()?;
        let views: Vec<View> = grads.iter().map(View::new).collect();
        let all: Vec<&Tensor> = jobs.iter().flat_map(Job::tensors).collect();
        memories_mut(&all, &mut |memories| {
            let (mut rest, mut args, mut fields, mut groups) = (memories, vec![], vec![], 0);
            for (job, view) in jobs.iter().zip(&views) {
                let (own, after) = rest.split_at_mut(1 + job.state.len());
                rest = after;
                let [p, state @ ..] = own else { bail!("optimizer: no parameter") };
                args.extend([Arg::Change(p), Arg::Read(view.slice()?)]);
                let missing = 2 - state.len();
                args.extend(state.iter_mut().map(Arg::Change));
                // What the rule does not keep is not touched.
                args.extend((0..missing).map(|_| view.slice().map(Arg::Read)).collect::<Result<Vec<_>>>()?);
                groups += view.count().div_ceil(THREADS);
                fields.extend(numbers(job.update)?);
                fields.extend([view.count() as u32, groups as u32]);
            }
            for _ in jobs.len()..SETS {
                args.extend((0..4).map(|_| views[0].slice().map(Arg::Read)).collect::<Result<Vec<_>>>()?);
                fields.extend([0; FIELDS]);
            }
            args.push(Arg::Fields(&fields));
            gpu.launch(&KERNELS, "update", Grid { groups: [groups, 1], threads: THREADS }, &mut args)
        })?;
    }
    Ok(())
}

/// Words of the kernel's `Update`.
const FIELDS: usize = 16;

/// The kernel's `Update` without its last two fields.
fn numbers(u: Update) -> Result<[u32; FIELDS - 2]> {
    let decoupled = matches!(u.rule, Rule::AdamW(_));
    let (keep, coupled) = if decoupled { (1. - u.lr * u.weight_decay, 0.) } else { (1., u.weight_decay) };
    let (mut lr, mut beta1, mut beta2, mut root, mut eps) = (u.lr, 0., 0., 1., 0.);
    let (mut rule, mut momentum, mut nesterov) = (0, 0., false);
    match u.rule {
        Rule::AdamW(Moments { beta1: b1, beta2: b2, eps: e })
        | Rule::Adam(Moments { beta1: b1, beta2: b2, eps: e }) => {
            (beta1, beta2, eps) = (b1, b2, e);
            lr /= 1. - beta1.powf(u.step as f64);
            root = 1. / (1. - beta2.powf(u.step as f64)).sqrt();
        }
        Rule::Sgd { momentum: m, nesterov: n } => (rule, momentum, nesterov) = (1, m, n),
        Rule::RmsProp { alpha, eps: e, momentum: m } => (rule, beta2, eps, momentum) = (2, alpha, e, m),
        Rule::Muon { .. } => bail!("optimizer: Muon has no kernel"),
    }
    let floats = [u.scale, keep, coupled, lr, beta1, 1. - beta1, beta2, 1. - beta2, root, eps, momentum];
    let mut fields = [0; FIELDS - 2];
    fields[0] = rule;
    fields[1..12].copy_from_slice(&floats.map(|v| (v as f32).to_bits()));
    fields[12] = nesterov.into();
    fields[13] = (momentum != 0.).into();
    Ok(fields)
}

/// The sum of the squares of all of `tensors`, with one number that comes back to the host; infinite beyond f32's range.
pub(super) fn squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<f64> {
    let tensors = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let views: Vec<View> = tensors.iter().map(View::new).collect();
    let chunks = |v: &View| v.count().div_ceil(CHUNK);
    let mut parts = gpu.floats(views.iter().map(chunks).sum())?;
    let mut at = 0;
    for views in views.chunks(NORMED) {
        let mut args = vec![];
        let (mut counts, mut ends, mut groups) = ([0; NORMED], [0; NORMED], 0);
        for (i, view) in views.iter().enumerate() {
            args.push(Arg::Read(view.slice()?));
            groups += chunks(view);
            (counts[i], ends[i]) = (view.count() as u32, groups as u32);
        }
        for _ in views.len()..NORMED {
            args.push(Arg::Read(views[0].slice()?));
        }
        let fields = [counts.as_slice(), &ends, &[at as u32, CHUNK as u32]].concat();
        args.extend([Arg::Write(&mut parts), Arg::Fields(&fields)]);
        let grid = Grid::rows(groups, CHUNK);
        gpu.launch(&KERNELS, "squares", grid, &mut args)?;
        at += groups;
    }
    gpu.wide().totals(&parts, 1, 1.)?.into_tensor(()).to_scalar::<f32>().map(f64::from)
}
