//! Threads that wait for each other. Alone in its process: if they do for ever, nothing else has rayon's threads any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use zoo_layers::optim::{Moments, Optimizer, Rule, decay_matrices};
use zoo_layers::{Gradients, Linear, Params};

/// A step on a thread of its own while all of rayon's are in forward passes of what it moves.
#[test]
fn a_step_waits_for_no_thread_that_waits_for_it() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let layer = Linear::new(512, 512, params.builder())?;
    let mut optimizer = Optimizer::new(Rule::AdamW(Moments::default()), &params, decay_matrices(0.))?;
    let ones = params.all().into_iter().map(|p| Ok((p.name, Some(p.var.ones_like()?))));
    let grads = Gradients::new(ones.collect::<Result<_>>()?);
    let x = Tensor::zeros((64, 512), DType::F32, &Device::Cpu)?;
    let (sender, ended) = channel();
    std::thread::spawn(move || {
        let stop = AtomicBool::new(false);
        // The pool that work of this thread would go to.
        rayon::in_place_scope(|scope| {
            scope.spawn_broadcast(|_, _| {
                while !stop.load(Ordering::Relaxed) {
                    layer.forward(&x).expect("a result");
                }
            });
            (0..100).for_each(|_| optimizer.step(&grads, 1e-3, 1.).expect("a step"));
            stop.store(true, Ordering::Relaxed);
        });
        sender.send(optimizer.steps()).expect("a receiver");
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(100), "a deadlock");
    Ok(())
}
