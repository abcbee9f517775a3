//! What safe code may not do to the layers: read or write where nothing is, wait for ever, or be wrong without a word.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_kernels::cpu::{memories_mut, parallel};
use zoo_kernels::{Backward, Forward, Op, Output, View, apply_one};
#[cfg(not(debug_assertions))]
use zoo_layers::ops::mse;
use zoo_layers::ops::{Activation, autocast, embedding, linear, pool};
use zoo_layers::optim::{Moments, Optimizer, Rule, average, clip_factor, decay_matrices, global_norm};
use zoo_layers::{Gradients, Linear, Params};

const SGD: Rule = Rule::Sgd { momentum: 0., nesterov: false };

/// An op whose kernels make so many elements, whatever they should.
struct Wrong {
    forward: usize,
    backward: usize,
}

impl Op for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].clone()])
    }

    fn cpu_forward(&self, inputs: &[View], _: bool) -> Result<Forward> {
        let output = Output { data: vec![0.; self.forward], shape: inputs[0].dims().into() };
        Ok(Forward { outputs: vec![output], saved: vec![] })
    }

    fn cpu_backward(&self, _: &Backward) -> Result<Vec<Option<Vec<f32>>>> {
        Ok(vec![Some(vec![0.; self.backward])])
    }
}

fn said<T>(outcome: Result<T>, what: &str) {
    let message = outcome.map(|_| ()).map_err(|e| e.to_string());
    assert!(message.as_ref().is_err_and(|e| e.contains(what)), "{what}: {message:?}");
}

#[test]
fn ids_that_change_after_the_forward_pass_are_not_read_again() -> Result<()> {
    let ids = Var::new(&[0i64, 1], &Device::Cpu)?;
    let table = Var::zeros((3, 2), DType::F32, &Device::Cpu)?;
    let loss = embedding(&ids, &table)?.sum_all()?;
    ids.set(&Tensor::new(&[7i64, -1], &Device::Cpu)?)?;
    let gradient = loss.backward()?.get(&table).map(Tensor::to_vec2::<f32>).transpose()?;
    assert_eq!(gradient, Some(vec![vec![1., 1.], vec![1., 1.], vec![0., 0.]]));
    Ok(())
}

#[test]
fn kernels_that_make_another_number_of_elements_are_refused() -> Result<()> {
    let x = Var::zeros((2, 3), DType::F32, &Device::Cpu)?;
    for forward in [5, 7] {
        said(apply_one(Wrong { forward, backward: 6 }, &[&x]), "wrong: its kernel made");
    }
    for backward in [5, 7] {
        let y = apply_one(Wrong { forward: 6, backward }, &[&x])?;
        said(zoo_layers::ops::backward_scaled(&y.sum_all()?, 1.), "for a gradient of [2, 3]");
    }
    Ok(())
}

#[test]
fn tensors_that_claim_more_than_can_be_counted_are_refused() -> Result<()> {
    let zeros = |dims: (usize, usize)| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let large = 1usize << 32;
    // candle takes the product of the sides modulo 2^64, or panics where overflow is looked for.
    #[cfg(not(debug_assertions))]
    said(mse(&zeros((large, large))?, &zeros((large, large))?), "more elements than can be counted");
    said(
        linear(&zeros((large, 0))?, &zeros((large, 0))?, None, Activation::Identity),
        "more elements than can be addressed",
    );
    let x = Tensor::zeros((large, 0, large), DType::F32, &Device::Cpu)?;
    said(pool(&x, &Tensor::zeros(0, DType::F32, &Device::Cpu)?), "more sums than can be counted");
    Ok(())
}

#[test]
fn memory_that_is_shared_is_not_changed_twice() -> Result<()> {
    let x = Var::zeros(4, DType::F32, &Device::Cpu)?;
    let (whole, part) = (x.as_tensor(), x.narrow(0, 1, 2)?);
    for pair in [[whole, whole], [whole, &part]] {
        said(memories_mut(&pair, &mut |_| Ok(())), "share their storage");
    }
    let (a, b) = (Var::zeros(4, DType::F32, &Device::Cpu)?, Var::zeros(4, DType::F32, &Device::Cpu)?);
    // In both orders at once, for ever or not at all.
    std::thread::scope(|scope| {
        for pair in [[a.as_tensor(), b.as_tensor()], [b.as_tensor(), a.as_tensor()]] {
            scope.spawn(move || (0..2000).for_each(|_| memories_mut(&pair, &mut |_| Ok(())).expect("memory")));
        }
    });
    let mut lens = vec![];
    let c = Var::zeros(7, DType::F32, &Device::Cpu)?;
    memories_mut(&[&c, &a], &mut |memories| {
        lens = memories.iter().map(|m| m.len).collect();
        Ok(())
    })?;
    assert_eq!(lens, [7, 4], "in the order that was asked for");
    parallel::chunks(5, 0, |range| assert_eq!(range.len(), 1));
    parallel::chunks(5, usize::MAX, |range| assert_eq!(range, 0..5));
    Ok(())
}

fn model() -> Result<(Linear, Params)> {
    let params = Params::init(1, &Device::Cpu);
    Ok((Linear::new(4, 3, params.builder())?, params))
}

fn gradients(params: &Params, of: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Gradients> {
    let entries = params.trainable().into_iter().map(|p| Ok((p.name.clone(), Some(of(p.var.as_tensor())?))));
    Ok(Gradients::new(entries.collect::<Result<_>>()?))
}

#[test]
fn an_optimizer_says_what_it_cannot_do() -> Result<()> {
    let (_, params) = model()?;
    let new = |rule: Rule| Optimizer::new(rule, &params, decay_matrices(0.));
    for rule in [
        Rule::AdamW(Moments { beta1: 1., ..Moments::default() }),
        Rule::Adam(Moments { eps: 0., ..Moments::default() }),
        Rule::RmsProp { alpha: f64::NAN, eps: 1e-8, momentum: 0. },
        Rule::Sgd { momentum: 1.5, nesterov: false },
    ] {
        said(new(rule), "expected shares from 0 to below 1");
    }
    let mut optimizer = new(Rule::AdamW(Moments::default()))?;
    said(optimizer.load(&optimizer.state().into_iter().collect(), u64::MAX), "steps");
    // A state of another type is taken for what it says.
    let halves = optimizer.state().into_iter().map(|(name, t)| Ok((name, (t + 1.5)?.to_dtype(DType::BF16)?)));
    optimizer.load(&halves.collect::<Result<BTreeMap<_, _>>>()?, 3)?;
    assert!(optimizer.state().iter().all(|(_, t)| t.dtype() == DType::F32));
    said(
        optimizer.step(&gradients(&params, |t| t.to_dtype(DType::I64))?, 0.1, 1.),
        "are not those of the optimizer's parameters",
    );
    assert_eq!(optimizer.steps(), 3, "nothing was counted");
    // A gradient that is the parameter itself is no reason to wait for ever.
    let before = params.all()[0].var.to_vec2::<f32>()?;
    new(SGD)?.step(&gradients(&params, |t| Ok(t.clone()))?, 0.5, 1.)?;
    let after = params.all()[0].var.to_vec2::<f32>()?;
    assert!(after.iter().flatten().zip(before.iter().flatten()).all(|(a, b)| (a - b / 2.).abs() < 1e-6));
    let (mut one, other) = (gradients(&params, Tensor::zeros_like)?, Gradients::new(vec![("weight".into(), None)]));
    said(one.add(&other), "of other parameters");
    assert!(clip_factor(f64::NAN, 1.).is_nan());
    assert!(global_norm(&gradients(&params, |t| t.ones_like()?.to_dtype(DType::F64))?).is_ok());
    Ok(())
}

#[test]
fn parameters_are_what_was_loaded_and_nobody_elses() -> Result<()> {
    let (_, params) = model()?;
    let tensors = |of: &dyn Fn(&Var) -> Tensor| {
        params.all().iter().map(|p| (p.name.clone(), of(&p.var))).collect::<BTreeMap<_, _>>()
    };
    let (_, copy) = Params::fine_tune(tensors(&|v| v.as_tensor().clone()), &Device::Cpu, |vb| Linear::new(4, 3, vb))?;
    said(Linear::new(3, 2, copy.builder().pp("head")), "is not among the tensors that were loaded");
    // Of variables there are copies, so that two models do not train one storage.
    params.set(&tensors(&|v| v.ones_like().expect("ones")))?;
    assert!(copy.all()[0].var.to_vec2::<f32>()? != params.all()[0].var.to_vec2::<f32>()?);
    average(&copy, &params, 0.5)?;
    // Large weights are finite, though their squares are not.
    let (_, large) =
        Params::restore(tensors(&|v| (v.ones_like().expect("ones") * 1e30).expect("large")), &Device::Cpu, |vb| {
            Linear::new(4, 3, vb)
        })?;
    assert!(large.all()[0].var.to_vec2::<f32>()?[0][0] > 1e29);
    let infinite = tensors(&|v| (v.ones_like().expect("ones") * f64::INFINITY).expect("infinite"));
    said(Params::restore(infinite, &Device::Cpu, |vb| Linear::new(4, 3, vb)), "not finite");
    Ok(())
}

/// Steps on rayon's threads beside the same parameters' forward passes: each comes to an end, or is refused.
#[test]
fn steps_beside_forward_passes_come_to_an_end() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let layer = Linear::new(256, 256, params.builder())?;
    let mut optimizer = Optimizer::new(Rule::AdamW(Moments::default()), &params, decay_matrices(0.))?;
    let grads = gradients(&params, Tensor::ones_like)?;
    let x = Tensor::zeros((64, 256), DType::F32, &Device::Cpu)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("a pool");
    let (done, begun) = (std::sync::mpsc::channel(), Instant::now());
    std::thread::spawn(move || {
        let mut steps = 0;
        for _ in 0..200 {
            let (stepped, forward) =
                pool.install(|| rayon::join(|| optimizer.step(&grads, 1e-3, 1.), || layer.forward(&x)));
            steps += u32::from(stepped.is_ok());
            forward.expect("a result");
        }
        done.0.send(steps).expect("a receiver");
    });
    let steps = done.1.recv_timeout(Duration::from_secs(60)).expect("a deadlock");
    assert!(steps > 0, "{:?}", begun.elapsed());
    Ok(())
}

/// What a thread takes up while it waits has nothing to do with what is in force on it.
#[test]
fn a_type_in_force_does_not_reach_what_another_task_computes() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let (narrow, wide) =
        (Linear::new(256, 256, params.builder().pp("a"))?, Linear::new(256, 256, params.builder().pp("b"))?);
    let x = zoo_kernels::check::random(1, &[300, 256])?;
    let expected = wide.forward(&x)?.to_vec2::<f32>()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                pool.install(|| autocast(DType::BF16, || narrow.forward(&x))).expect("a result");
            }
        });
        let others = (0..300).filter(|_| {
            let found = pool.install(|| wide.forward(&x)).and_then(|y| y.to_vec2::<f32>());
            found.expect("a result") != expected
        });
        let others = others.count();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(others, 0, "of 300 passes were in the other thread's type");
    });
    Ok(())
}
