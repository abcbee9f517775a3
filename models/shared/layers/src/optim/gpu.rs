use candle_core::{DType, Result, Tensor, bail};
use zoo_kernels::cpu::memories_mut;
use zoo_kernels::gpu::{Arg, Array, Factor, Gpu, Grid, Module, Slice, THREADS};
use zoo_kernels::{View, module};

use super::muon::{COEFFICIENTS, STEPS};
use super::{Job, Moments, Rule, Update};

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
            // SAFETY: each parameter's gradient and state have as many elements as it, as `Optimizer` checked, and so many are counted.
            unsafe { gpu.launch(&KERNELS, "update", Grid { groups: [groups, 1], threads: THREADS }, &mut args) }
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
        Rule::Muon { .. } => bail!("optimizer: Muon moves matrices one by one"),
    }
    let floats = [u.scale, keep, coupled, lr, beta1, 1. - beta1, beta2, 1. - beta2, root, eps, momentum];
    let mut fields = [0; FIELDS - 2];
    fields[0] = rule;
    fields[1..12].copy_from_slice(&floats.map(|v| (v as f32).to_bits()));
    fields[12] = nesterov.into();
    fields[13] = (momentum != 0.).into();
    Ok(fields)
}

/// Moves a matrix by Muon: the steps of the reference.
pub(super) fn muon(gpu: &Gpu, job: &Job, momentum: f64) -> Result<()> {
    let (rows, columns) = job.param.var.dims2()?;
    let (n, u) = (rows * columns, job.update);
    let grad = job.grad.contiguous()?;
    let grad = View::new(&grad);
    // y = keep · y + share · x
    let blend = |y: Arg, x: Slice, keep: f64, share: f64| {
        let args = &mut [y, Arg::Read(x), Arg::Count(x.count()), Arg::Float(keep), Arg::Float(share)];
        // SAFETY: y has as many elements as x: both are the parameter's, or square matrices of its shorter side.
        unsafe { gpu.launch(&KERNELS, "blend", Grid::each(x.count()), args) }
    };
    memories_mut(&job.tensors(), &mut |memories| {
        let [p, buffer] = memories else { bail!("optimizer: no momentum of {}", job.param.name) };
        let mut x = gpu.array(n)?;
        let mut args = vec![Arg::Read(grad.slice()?), Arg::Change(buffer), Arg::Write(&mut x), Arg::Count(n)];
        args.extend([momentum, u.scale].map(Arg::Float));
        // SAFETY: gradient, buffer and x have the parameter's n elements.
        unsafe { gpu.launch(&KERNELS, "muon_begin", Grid::each(n), &mut args)? };
        let squares = gpu.totals(&square_sums(gpu, &[x.slice()])?, 1, 1.)?;
        let args = &mut [Arg::Write(&mut x), Arg::Read(squares.slice()), Arg::Count(n)];
        // SAFETY: x has n elements, and one sum is read.
        unsafe { gpu.launch(&KERNELS, "muon_normal", Grid::each(n), args)? };
        let [a, b, c] = COEFFICIENTS.map(f64::from);
        let side = rows.min(columns);
        for _ in 0..STEPS {
            let (straight, across) = (Factor::rows(x.slice()), Factor::transposed(x.slice()));
            let wide = rows <= columns;
            let (left, right, long) = if wide { (straight, across, columns) } else { (across, straight, rows) };
            let square = gpu.matmul([side, side, long], left, right)?;
            let factor = Factor::rows(square.slice());
            let mut polynomial = gpu.matmul([side, side, side], factor, factor)?;
            blend(Arg::Write(&mut polynomial), square.slice(), c, b)?;
            let factor = Factor::rows(polynomial.slice());
            let (left, right) = if wide { (factor, straight) } else { (straight, factor) };
            let moved = gpu.matmul([rows, columns, side], left, right)?;
            blend(Arg::Write(&mut x), moved.slice(), a, 1.)?;
        }
        let rate = u.lr * 0.2 * (rows.max(columns) as f64).sqrt();
        blend(Arg::Change(p), x.slice(), 1. - u.lr * u.weight_decay, -rate)
    })
}

/// The sum of the squares of all of `tensors`, with one number that comes back to the host; infinite beyond f32's range.
pub(super) fn squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<f64> {
    let tensors = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let views: Vec<View> = tensors.iter().map(View::new).collect();
    let parts = square_sums(gpu, &views.iter().map(View::slice).collect::<Result<Vec<_>>>()?)?;
    gpu.of_type(DType::F32).totals(&parts, 1, 1.)?.into_tensor(())?.to_scalar::<f32>().map(f64::from)
}

/// Sums of squares, those of a chunk each.
fn square_sums(gpu: &Gpu, all: &[Slice]) -> Result<Array> {
    let chunks = |x: &Slice| x.count().div_ceil(CHUNK);
    let mut parts = gpu.floats(all.iter().map(chunks).sum())?;
    let mut at = 0;
    for some in all.chunks(NORMED) {
        let mut args = vec![];
        let (mut counts, mut ends, mut groups) = ([0; NORMED], [0; NORMED], 0);
        for (i, x) in some.iter().enumerate() {
            args.push(Arg::Read(*x));
            groups += chunks(x);
            (counts[i], ends[i]) = (x.count() as u32, groups as u32);
        }
        args.extend((some.len()..NORMED).map(|_| Arg::Read(some[0])));
        let fields = [counts.as_slice(), &ends, &[at as u32, CHUNK as u32]].concat();
        args.extend([Arg::Write(&mut parts), Arg::Fields(&fields)]);
        let grid = Grid::rows(groups, CHUNK);
        // SAFETY: each array's own elements are counted, and there is a sum for each chunk of them.
        unsafe { gpu.launch(&KERNELS, "squares", grid, &mut args)? };
        at += groups;
    }
    Ok(parts)
}
