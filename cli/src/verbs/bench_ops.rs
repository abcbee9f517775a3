//! `bench --ops`: every op beside its `reference()`, forward and backward, both by candle's backward pass.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use serde_json::json;
use zoo_layers::ops::{self, Activation, AttentionOptions, RopePairs};
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{
    AttentionConfig, Dropout, Lstm, LstmConfig, Mlp, MlpConfig, Mode, MultiHeadAttention, Norm, Params, Qkv, init,
};

use super::bench::{Arguments, median};
use crate::device::device;
use crate::output::{print, print_json, table};
use zoo_kernels::check::random;
use zoo_kernels::cpu::simd;
use zoo_training::Error;

type Call = dyn Fn(&[Var]) -> Result<Tensor>;

/// An op at a size that the models have.
struct Case {
    name: &'static str,
    /// What gets gradients.
    vars: Vec<Var>,
    call: Box<Call>,
}

/// Where the ops run, and the type of what they get.
struct Target {
    device: Device,
    dtype: DType,
}

impl Target {
    fn case(
        &self,
        name: &'static str,
        dims: &[&[usize]],
        call: impl Fn(&[Var]) -> Result<Tensor> + 'static,
    ) -> Result<Case> {
        let var = |(i, d): (usize, &&[usize])| {
            Var::from_tensor(&random(i as u64, d)?.to_dtype(self.stored())?.to_device(&self.device)?)
        };
        let vars = dims.iter().enumerate().map(var);
        let dtype = self.dtype;
        let call = move |v: &[Var]| ops::autocast(dtype, || call(v));
        Ok(Case { name, vars: vars.collect::<Result<_>>()?, call: Box::new(call) })
    }

    /// The type of parameters and inputs: on a CPU, products alone are narrower.
    fn stored(&self) -> DType {
        if self.device.is_cpu() { DType::F32 } else { self.dtype }
    }

    /// A layer's call on (rows, features) like those, with its own parameters.
    fn layer(
        &self,
        name: &'static str,
        dims: &[usize],
        params: &Params,
        call: impl Fn(&Tensor) -> Result<Tensor> + 'static,
    ) -> Result<Case> {
        let mut case = self.case(name, &[dims], move |v| call(&v[0]))?;
        case.vars.extend(params.trainable().into_iter().map(|p| p.var));
        Ok(case)
    }

    /// Calls that are timed as one: a GPU works behind the program, which waits for it after these.
    fn calls(&self) -> usize {
        if self.device.is_cpu() { 1 } else { 20 }
    }
}

/// The sizes of char-gpt's preset baby at batch 8: 2048 positions of 384 features in 6 heads of 64.
fn cases(at: &Target) -> Result<Vec<Case>> {
    const X: &[usize] = &[2048, 384];
    const HIDDEN: &[usize] = &[2048, 1536];
    const HEADS: &[usize] = &[8, 6, 256, 64];
    const FEW: &[usize] = &[8, 2, 256, 64];
    // What deepsif gives for 8 samples.
    const ACTIVITY: &[usize] = &[8, 500, 994];
    let stream = || Stream::new(1, Purpose::Dropout, 1, 1);
    let numbers: Vec<i64> = (0..2048).map(|i| i * 7 % 65).collect();
    let ids = Tensor::from_vec(numbers, 2048, &at.device)?;
    let targets = ids.clone();
    let causal = |dropout| AttentionOptions { causal: true, scale: None, dropout };
    let (cos, sin) = ops::rope_angles(0, 256, 64, 10_000., &at.device)?;
    let (cos, sin) = (cos.to_dtype(at.stored())?, sin.to_dtype(at.stored())?);
    let mut cases = vec![
        at.case("linear 384 to 1536", &[X, &[1536, 384], &[1536]], |v| {
            ops::linear(&v[0], &v[1], Some(&v[2]), Activation::Identity)
        })?,
        at.case("linear + GELU", &[X, &[1536, 384], &[1536]], |v| {
            ops::linear(&v[0], &v[1], Some(&v[2]), Activation::Gelu)
        })?,
        at.case("ReLU", &[HIDDEN], |v| ops::relu(&v[0]))?,
        at.case("GELU", &[HIDDEN], |v| ops::gelu(&v[0]))?,
        at.case("GELU (tanh)", &[HIDDEN], |v| ops::gelu_tanh(&v[0]))?,
        at.case("SiLU", &[HIDDEN], |v| ops::silu(&v[0]))?,
        at.case("ELU", &[HIDDEN], |v| ops::elu(&v[0], 1.))?,
        at.case("SwiGLU", &[HIDDEN, HIDDEN], |v| ops::gated(&v[0], &v[1], Activation::Silu))?,
        at.case("layer norm", &[X, &[384], &[384]], |v| ops::layer_norm(&v[0], Some(&v[1]), Some(&v[2]), 1e-5))?,
        at.case("RMS norm", &[X, &[384]], |v| ops::rms_norm(&v[0], Some(&v[1]), 1e-5))?,
        at.case("softmax", &[&[2048, 256]], |v| ops::softmax(&v[0]))?,
        at.case("log-softmax", &[&[2048, 256]], |v| ops::log_softmax(&v[0]))?,
        at.case("embedding", &[&[65, 384]], move |v| ops::embedding(&ids, &v[0]))?,
        at.case("cross-entropy", &[&[2048, 65]], move |v| ops::cross_entropy(&v[0], &targets, Default::default()))?,
        at.case("dropout", &[X], move |v| ops::dropout(&v[0], 0.2, stream()))?,
        at.case("residual + dropout", &[X, X], move |v| ops::add_dropout(&v[0], &v[1], Some((0.2, stream()))))?,
        at.case("attention, causal", &[HEADS; 3], move |v| ops::attention(&v[0], &v[1], &v[2], 6, None, causal(None)))?,
        at.case("attention, 2 heads of keys", &[HEADS, FEW, FEW], move |v| {
            ops::attention(&v[0], &v[1], &v[2], 6, None, causal(None))
        })?,
        at.case("attention + dropout", &[HEADS; 3], move |v| {
            ops::attention(&v[0], &v[1], &v[2], 6, None, causal(Some((0.2, stream()))))
        })?,
        at.case("rope", &[HEADS], move |v| ops::rope(&v[0], &cos, &sin, RopePairs::Halves))?,
        at.case("mean squared error", &[X, X], |v| ops::mse(&v[0], &v[1]))?,
        at.case("sequence loss", &[ACTIVITY; 2], |v| Ok(ops::sequence_loss(&v[0], &v[1], [1., 0.01, 0.001])?.0))?,
    ];
    let weight = init::normal(0., 0.02);
    let mode = Mode::Train { seed: 1, step: 1 };
    let drop = || Dropout::new(0.2, "dropout");
    let params = Params::init(1, &at.device);
    let norm = Norm::layer(384, 1e-5, true, params.builder().pp("norm"))?;
    let config = AttentionConfig {
        width: 384,
        heads: 6,
        qkv: Qkv::Packed,
        bias: true,
        causal: true,
        dropout: 0.2,
        init: [weight; 2],
    };
    let attention = MultiHeadAttention::new(config, params.builder())?;
    cases.push(at.layer("attention branch", &[8, 256, 384], &params, move |x| {
        attention.branch(x, Some(&norm), &drop(), mode)
    })?);
    let params = Params::init(1, &at.device);
    let norm = Norm::layer(384, 1e-5, true, params.builder().pp("norm"))?;
    let config = MlpConfig {
        width: 384,
        hidden: 1536,
        bias: true,
        activation: Activation::Gelu,
        dropout: 0.,
        init: [weight; 2],
    };
    let mlp = Mlp::new(config, params.builder())?;
    cases.push(at.layer("MLP branch", &[8, 256, 384], &params, move |x| mlp.branch(x, Some(&norm), &drop(), mode))?);
    let params = Params::init(1, &at.device);
    let lstm = Lstm::new(LstmConfig { input: 50, hidden: 50, layers: 1, dropout: 0. }, params.builder())?;
    cases.push(at.layer("LSTM, 60 steps", &[32, 60, 50], &params, move |x| lstm.forward_last(x, mode))?);
    Ok(cases)
}

/// Attention at 4,096 positions, whose reference would store them squared.
fn long(at: &Target) -> Result<Vec<Case>> {
    const ONE: &[usize] = &[1, 1, 4096, 64];
    const EIGHT: &[usize] = &[1, 8, 4096, 64];
    let of = |causal: bool| AttentionOptions { causal, ..Default::default() };
    Ok(vec![
        at.case("4096 positions, 1 head", &[ONE; 3], move |v| ops::attention(&v[0], &v[1], &v[2], 1, None, of(false)))?,
        at.case("4096 positions, 1 head, causal", &[ONE; 3], move |v| {
            ops::attention(&v[0], &v[1], &v[2], 1, None, of(true))
        })?,
        at.case("4096 positions, 8 heads", &[EIGHT; 3], move |v| {
            ops::attention(&v[0], &v[1], &v[2], 8, None, of(false))
        })?,
        at.case("4096 positions, 8 heads, causal", &[EIGHT; 3], move |v| {
            ops::attention(&v[0], &v[1], &v[2], 8, None, of(true))
        })?,
    ])
}

/// Median milliseconds of forward alone and of forward and backward.
fn times(at: &Target, case: &Case, seconds: f64) -> Result<[f64; 2]> {
    let measure = |call: &dyn Fn() -> Result<()>| -> Result<f64> {
        call()?;
        let (started, mut times) = (Instant::now(), vec![]);
        while started.elapsed().as_secs_f64() < seconds || times.len() < 3 {
            at.device.synchronize()?;
            let start = Instant::now();
            (0..at.calls()).try_for_each(|_| call())?;
            at.device.synchronize()?;
            times.push(start.elapsed().as_secs_f64() * 1e3 / at.calls() as f64);
        }
        Ok(median(times))
    };
    let forward = measure(&|| (case.call)(&case.vars).map(drop))?;
    let both = measure(&|| (case.call)(&case.vars)?.sum_all()?.backward().map(drop))?;
    Ok([forward, both])
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let dtype = match args.set.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["train.dtype=f32"] => DType::F32,
        ["train.dtype=bf16"] => DType::BF16,
        ["train.dtype=f16"] => DType::F16,
        _ => return Err(Error::Usage("--ops: the only setting is train.dtype, f32, bf16 or f16".into()).into()),
    };
    let at = Target { device: device(&args.device.device)?, dtype };
    if at.device.is_cpu() && dtype == DType::F16 {
        return Err(Error::Usage("--ops: the CPU has no kernels for f16; add --device cuda or metal".into()).into());
    }
    let seconds = args.seconds / 8.;
    let mut rows = vec![
        ["op", "forward ms", "and backward ms", "reference", "and backward ms", "times"].map(String::from).to_vec(),
    ];
    let mut found = vec![];
    let shown = |ms: f64| format!("{ms:.3}");
    for case in cases(&at)? {
        let [forward, both] = times(&at, &case, seconds)?;
        let [plain, plain_both] = simd::with_fused(false, || times(&at, &case, seconds))?;
        rows.push(vec![
            case.name.into(),
            shown(forward),
            shown(both),
            shown(plain),
            shown(plain_both),
            format!("{:.1}", plain_both / both),
        ]);
        found.push(json!({
            "op": case.name, "forward_ms": forward, "forward_backward_ms": both,
            "reference_forward_ms": plain, "reference_forward_backward_ms": plain_both,
        }));
    }
    for case in long(&at)? {
        let [forward, both] = times(&at, &case, seconds)?;
        rows.push(vec![case.name.into(), shown(forward), shown(both), "-".into(), "-".into(), "-".into()]);
        found.push(json!({ "op": case.name, "forward_ms": forward, "forward_backward_ms": both }));
    }
    match args.json.json {
        true => print_json(&json!({
            "device": args.device.device, "dtype": dtype.as_str(), "threads": rayon::current_num_threads(), "ops": found,
        })),
        false => print(&table(&rows)),
    }
    Ok(())
}
