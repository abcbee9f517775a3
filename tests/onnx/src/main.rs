//! Writes every preset of every model as an ONNX graph, with random weights, and runs it by tract on random inputs: what comes out has to be
//! what the model gives.
//!
//!     cargo run --manifest-path tests/onnx/Cargo.toml -- FOLDER
//!
//! Graphs, inputs and outputs stay in FOLDER, for `tests/fixtures/onnx_run.py`, which runs them by onnxruntime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tract_onnx::prelude::{DatumExt, Framework, InferenceFact, InferenceModelExt, IntoRunnable, TValue, TVec, tvec};
use zoo_char_gpt::CharTask;
use zoo_checkpoint::Description;
use zoo_deepsif::{DeepSifTask, prepare};
use zoo_layers::onnx::Graph;
use zoo_layers::random::{Purpose, Stream};
use zoo_layers::{Mode, Params};
use zoo_llama::LlamaTask;
use zoo_stock_lstm::{Bar, StockLstm, StockTask};
use zoo_trading_transformer::features::{WARMUP, observation, of_bars};
use zoo_trading_transformer::{Head, TradingTask};
use zoo_training::config::{ConfigOf, Overrides, resolve};
use zoo_training::{Export, Recipe};

/// Inputs or outputs by name.
type Values = Vec<(String, Tensor)>;

/// The most by which results differ, as a share of the largest of them.
const TOLERANCE: f64 = 1e-5;

struct Check {
    folder: PathBuf,
    failed: usize,
}

/// Settings that no preset has, with names for them.
const VARIANTS: [(&str, &str, &[&str]); 8] = [
    ("char-gpt", "tanh", &["model.gelu=\"tanh\""]),
    ("char-gpt", "packed", &["model.separate_qkv=false", "model.bias=true"]),
    ("llama", "many-heads", &["model.heads=6", "model.key_heads=1", "model.tied=false"]),
    ("stock-lstm", "close", &["data.target=\"close\"", "data.features=\"close\"", "model.input=1", "model.layers=1"]),
    ("stock-lstm", "ohlcv-close", &["data.target=\"close\"", "data.features=\"ohlcv\"", "model.layers=3"]),
    ("trading-transformer", "recent", &["model.recency=2.0"]),
    ("deepsif", "elu", &["model.activation=\"elu\""]),
    ("deepsif", "relu", &["model.activation=\"relu\""]),
];

/// The configurations of all presets, and of a few variants of the last one, which is the smallest.
fn presets<T: Recipe>() -> Result<Vec<(&'static str, ConfigOf<T>)>> {
    let config = |name: &'static str, preset: &'static str, set: &[&str]| {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        let mut config = resolve::<T>(&Overrides { preset: Some(preset), set: &set, ..Overrides::default() })?;
        T::settle(&mut config)?;
        Ok((name, config))
    };
    let last = T::PRESETS.last().map_or("", |preset| preset.name);
    let presets = T::PRESETS.iter().map(|preset| config(preset.name, preset.name, &[]));
    let variants = VARIANTS.iter().filter(|v| v.0 == T::NAME).map(|v| config(v.1, last, v.2));
    presets.chain(variants).collect()
}

/// Uniform numbers between -1 and 1.
fn random(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let mut stream = Stream::new(seed, Purpose::Simulation, 0, 0);
    let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|_| 2. * stream.uniform() as f32 - 1.).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// Moves every parameter: many begin at zero or one, where a mistake would not show.
fn shake(params: &Params) -> Result<()> {
    let moved = params.tensors().into_iter().enumerate().map(|(i, (name, tensor))| {
        let noise = (random(100 + i as u64, tensor.dims())? * 0.05)?;
        Ok((name, (tensor + noise)?))
    });
    Ok(params.set(&moved.collect::<Result<BTreeMap<_, _>>>()?)?)
}

/// Daily bars of a share.
fn walk() -> Result<Vec<Bar>> {
    let mut close = 100.;
    let bar = |row: &Vec<f32>| {
        let [open, high, low, last, volume]: [f64; 5] = std::array::from_fn(|i| f64::from(row[i]));
        let before = close;
        close *= (0.03 * last).exp();
        let (open, least, most) = (before * (1. + 0.01 * open), before.min(close), before.max(close));
        Bar {
            open,
            high: most.max(open) * (1. + 0.01 * high.abs()),
            low: least.min(open) * (1. - 0.01 * low.abs()),
            close,
            volume: 1e6 * (2. + volume),
        }
    };
    Ok(random(7, &[600, 5])?.to_vec2::<f32>()?.iter().map(bar).collect())
}

fn tract(tensor: &Tensor) -> Result<tract_onnx::prelude::Tensor> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::I64 => tract_onnx::prelude::Tensor::from_shape(tensor.dims(), &flat.to_vec1::<i64>()?)?,
        DType::F64 => tract_onnx::prelude::Tensor::from_shape(tensor.dims(), &flat.to_vec1::<f64>()?)?,
        _ => tract_onnx::prelude::Tensor::from_shape(tensor.dims(), &flat.to_vec1::<f32>()?)?,
    })
}

fn fact(tensor: &Tensor) -> InferenceFact {
    match tensor.dtype() {
        DType::I64 => i64::fact(tensor.dims()).into(),
        DType::F64 => f64::fact(tensor.dims()).into(),
        _ => f32::fact(tensor.dims()).into(),
    }
}

/// The outputs of a file in their order, by tract.
fn run(path: &Path, inputs: &Values) -> Result<Vec<Vec<f64>>> {
    let mut model = tract_onnx::onnx().model_for_path(path)?;
    let mut fed: TVec<TValue> = tvec![];
    for (i, (_, tensor)) in inputs.iter().enumerate() {
        model = model.with_input_fact(i, fact(tensor))?;
        fed.push(tract(tensor)?.into());
    }
    let outputs = model.into_optimized()?.into_runnable()?.run(fed)?;
    let values = |value: &TValue| -> Result<Vec<f64>> {
        let value = value.cast_to::<f64>()?;
        Ok(value.to_plain_array_view::<f64>()?.iter().copied().collect())
    };
    outputs.iter().map(values).collect()
}

impl Check {
    /// Writes a model's graph and compares what it gives.
    fn case<T: Export>(
        &mut self,
        name: &str,
        model: (&T::Model, &Params, &T::Architecture),
        fitted: &Value,
        state: bool,
        inputs: Values,
        expected: Values,
    ) -> Result<()> {
        let (model, params, architecture) = model;
        let mut graph = Graph::new(params.tensors());
        T::export(model, architecture, fitted, state, &mut graph)?;
        ensure!(graph.unused().is_empty(), "{name}: the graph leaves out {:?}", graph.unused());
        let path = self.folder.join(format!("{name}.onnx"));
        zoo_checkpoint::replace(&path, |to| graph.write(to, ["onnx-check", "0"], None))?;
        let kept: Values = (inputs.iter().map(|(n, t)| (format!("in {n}"), t.clone())))
            .chain(expected.iter().map(|(n, t)| (format!("out {n}"), t.clone())))
            .collect();
        zoo_checkpoint::write_npz(&path.with_extension("npz"), &kept)?;
        let bytes = std::fs::metadata(&path)?.len();
        let names: Vec<String> = graph.outputs().map(|o| o.0.to_string()).collect();
        let found = run(&path, &inputs);
        let difference = found.and_then(|found| {
            ensure!(names.len() == found.len(), "{} outputs", found.len());
            let mut most = 0f64;
            for (name, tensor) in &expected {
                let at = names.iter().position(|n| n == name).with_context(|| format!("no output {name}"))?;
                let wanted = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                ensure!(
                    wanted.len() == found[at].len(),
                    "{name} has {} values, expected {}",
                    found[at].len(),
                    wanted.len()
                );
                let size = wanted.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
                let off = wanted.iter().zip(&found[at]).map(|(a, b)| (a - b).abs());
                // What is not a number is as far off as can be.
                let off = off.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
                most = most.max(off / size);
            }
            Ok(most)
        });
        match difference {
            Ok(d) if d <= TOLERANCE => println!("{name:32} {:5} nodes {bytes:10} bytes  {d:.1e}", graph.nodes()),
            Ok(d) => {
                self.failed += 1;
                println!("{name:32} differs by {d:.1e}");
            }
            Err(e) => {
                self.failed += 1;
                println!("{name:32} {e:?}");
            }
        }
        Ok(())
    }

    fn writers(&mut self) -> Result<()> {
        for (name, config) in presets::<CharTask>()? {
            let config = config.model;
            let params = Params::init(1, &Device::Cpu);
            let model = zoo_char_gpt::CharGpt::new(&config, params.builder())?;
            shake(&params)?;
            let whole = |ids: &Tensor| Ok(model.forward(ids, Mode::Eval)?);
            self.writer::<CharTask>(
                &format!("char-gpt-{name}"),
                (&model, &params, &config),
                config.vocabulary,
                config.context,
                [config.layers, config.heads, config.width / config.heads],
                &whole,
            )?;
        }
        for (name, config) in presets::<LlamaTask>()? {
            let mut config = config.model;
            // Adapters are merged before they are written.
            config.lora.rank = 0;
            // The graph of a large model is that of a small one, some times over.
            if config.vocabulary * config.width > 10_000_000 {
                (config.layers, config.vocabulary) = (2, 1000);
            }
            let params = Params::init(1, &Device::Cpu);
            let model = zoo_llama::Llama::new(&config, params.builder())?;
            shake(&params)?;
            let whole = |ids: &Tensor| Ok(model.forward(ids, None)?);
            self.writer::<LlamaTask>(
                &format!("llama-{name}"),
                (&model, &params, &config),
                config.vocabulary,
                config.context,
                [config.layers, config.key_heads, config.head_width],
                &whole,
            )?;
        }
        Ok(())
    }

    /// A model that writes: all at once, and in two calls of which the second goes on from the first.
    fn writer<T: Export>(
        &mut self,
        name: &str,
        model: (&T::Model, &Params, &T::Architecture),
        vocabulary: usize,
        context: usize,
        [layers, heads, d]: [usize; 3],
        whole: &dyn Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let t = context.min(11);
        let ids: Vec<i64> = (0..2 * t as i64).map(|i| i * 7919 % vocabulary as i64).collect();
        let ids = Tensor::from_vec(ids, (2, t), &Device::Cpu)?;
        let logits = whole(&ids.to_dtype(DType::U32)?)?;
        self.case::<T>(
            name,
            model,
            &Value::Null,
            false,
            vec![("tokens".into(), ids.clone())],
            vec![("logits".into(), logits.clone())],
        )?;
        // The keys and values of the first call are what the graph itself says they are.
        let first = 4;
        let none = Tensor::zeros((2, heads, 0, d), DType::F32, &Device::Cpu)?;
        let mut inputs = vec![("tokens".to_string(), ids.narrow(1, 0, first)?.contiguous()?)];
        for layer in 0..layers {
            inputs.push((format!("past_keys.{layer}"), none.clone()));
            inputs.push((format!("past_values.{layer}"), none.clone()));
        }
        let stateful = format!("{name}-state");
        let expected = logits.narrow(1, 0, first)?.contiguous()?;
        self.case::<T>(&stateful, model, &Value::Null, true, inputs.clone(), vec![("logits".into(), expected)])?;
        let path = self.folder.join(format!("{stateful}.onnx"));
        // Outputs are in the order of layers, keys before values, then the logits.
        let present = run(&path, &inputs)?;
        inputs[0].1 = ids.narrow(1, first, t - first)?.contiguous()?;
        for (input, values) in inputs[1..].iter_mut().zip(present) {
            input.1 = Tensor::from_vec(values, (2, heads, first, d), &Device::Cpu)?.to_dtype(DType::F32)?;
        }
        let expected = logits.narrow(1, first, t - first)?.contiguous()?;
        self.case::<T>(&format!("{name}-state-2"), model, &Value::Null, true, inputs, vec![("logits".into(), expected)])
    }

    fn forecasters(&mut self) -> Result<()> {
        for (name, config) in presets::<StockTask>()? {
            let (features, target) = (config.data.features, config.data.target);
            let f = config.model.input;
            let scaler = json!({
                "target": target, "features": features, "shift": vec![0.01; f],
                "scale": (0..f).map(|i| 0.5 + i as f64).collect::<Vec<_>>(),
            });
            let params = Params::init(1, &Device::Cpu);
            let model = StockLstm::new(&config.model, params.builder())?;
            shake(&params)?;
            // As a program loads it.
            let weights = self.folder.join(format!("stock-lstm-{name}.safetensors"));
            let description = Description {
                model: "stock-lstm".into(),
                config: serde_json::to_value(&config)?,
                fitted: scaler.clone(),
            };
            zoo_checkpoint::write(&weights, &params.tensors(), &description.metadata())?;
            let forecaster = StockLstm::load(&weights, &Device::Cpu)?;
            let days = forecaster.days();
            let (mut rows, mut forecasts) = (vec![], vec![]);
            for sample in 0..2 {
                let noise = random(sample + 3, &[days, 5])?.to_vec2::<f32>()?;
                let bars = noise.iter().map(|row| {
                    let [open, high, low, close, volume] = std::array::from_fn(|i| f64::from(row[i]));
                    Bar {
                        open: 50. + open,
                        high: 52. + high,
                        low: 48. + low,
                        close: 50. + close,
                        volume: 1e6 * (2. + volume),
                    }
                });
                let bars: Vec<Bar> = bars.collect();
                forecasts.push(forecaster.predict_bars(&bars)?);
                rows.extend(bars.iter().flat_map(|b| match f {
                    1 => vec![b.close],
                    _ => vec![b.open, b.high, b.low, b.close, b.volume],
                }));
            }
            let bars = Tensor::from_vec(rows, (2, days, f), &Device::Cpu)?;
            let forecast = Tensor::from_vec(forecasts, 2, &Device::Cpu)?;
            let expected = vec![("forecast".to_string(), forecast)];
            let of = (&model, &params, &config.model);
            self.case::<StockTask>(
                &format!("stock-lstm-{name}"),
                of,
                &scaler,
                false,
                vec![("bars".into(), bars.clone())],
                expected.clone(),
            )?;
            // In two calls, of which the second begins with the last bar of the first.
            let state = (config.model.layers, 2, config.model.hidden);
            let zeros = Tensor::zeros(state, DType::F32, &Device::Cpu)?;
            let part = |first: usize, days: usize| bars.narrow(1, first, days)?.contiguous();
            let named = |bars: Tensor, h: &Tensor, c: &Tensor| {
                vec![("bars".to_string(), bars), ("h_in".to_string(), h.clone()), ("c_in".to_string(), c.clone())]
            };
            let (stateful, first) = (format!("stock-lstm-{name}-state"), days / 2);
            let inputs = named(part(0, first)?, &zeros, &zeros);
            self.case::<StockTask>(&stateful, of, &scaler, true, inputs.clone(), vec![])?;
            let between = run(&self.folder.join(format!("{stateful}.onnx")), &inputs)?;
            let tensor = |values: &[f64]| Tensor::from_slice(values, state, &Device::Cpu)?.to_dtype(DType::F32);
            let [_, h, c] = &between[..] else { bail!("{stateful} has {} outputs", between.len()) };
            let inputs = named(part(first - 1, days - first + 1)?, &tensor(h)?, &tensor(c)?);
            self.case::<StockTask>(&format!("{stateful}-2"), of, &scaler, true, inputs, expected)?;
        }
        Ok(())
    }

    fn traders(&mut self) -> Result<()> {
        for (name, config) in presets::<TradingTask>()? {
            let params = Params::init(1, &Device::Cpu);
            let model = zoo_trading_transformer::TradingTransformer::new(&config.model, params.builder())?;
            shake(&params)?;
            let bars = walk()?;
            let rows = of_bars(&bars, &vec![None; bars.len()]);
            let at = |t| observation(&rows, t, config.model.bars, &Device::Cpu);
            let observation = Tensor::cat(&[at(WARMUP + 300)?, at(WARMUP + 380)?], 0)?;
            let mut expected = vec![("features".to_string(), model.features(&observation)?)];
            match config.model.head {
                Head::Directions => expected.push(("directions".into(), model.directions(&observation)?)),
                Head::Policy => {
                    expected.push(("policy".into(), model.policy(&observation)?));
                    expected.push(("value".into(), model.actor_critic(&observation, Mode::Eval)?.1));
                }
            }
            let inputs = vec![("observation".to_string(), observation)];
            self.case::<TradingTask>(
                &format!("trading-{name}"),
                (&model, &params, &config.model),
                &Value::Null,
                false,
                inputs,
                expected,
            )?;
        }
        Ok(())
    }

    fn imagers(&mut self) -> Result<()> {
        for (name, config) in presets::<DeepSifTask>()? {
            let params = Params::init(1, &Device::Cpu);
            let network = zoo_deepsif::Network::new(&config.model, params.builder())?;
            shake(&params)?;
            let mut graph = Graph::new(params.tensors());
            if let Err(e) = network.export(&mut graph, &config.model) {
                ensure!(e.to_string().contains("sparse Bayesian"), "{name}: {e}");
                println!("deepsif-{name:24} is no graph of operators: {e}");
                continue;
            }
            let (t, n) = (40, config.model.sensors);
            // Far from zero, as amplifiers give it.
            let eeg = (random(6, &[2, t, n])? + 100.)?;
            let mut prepared = vec![];
            for sample in eeg.to_vec3::<f32>()? {
                let mut values: Vec<f32> = sample.into_iter().flatten().collect();
                prepare(&mut values, n);
                prepared.extend(values);
            }
            let activity = network.forward(&Tensor::from_vec(prepared, (2, t, n), &Device::Cpu)?, Mode::Eval)?;
            let (inputs, expected) = (vec![("eeg".to_string(), eeg)], vec![("activity".to_string(), activity)]);
            self.case::<DeepSifTask>(
                &format!("deepsif-{name}"),
                (&network, &params, &config.model),
                &Value::Null,
                false,
                inputs,
                expected,
            )?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let folder: PathBuf = std::env::args().nth(1).context("name a folder for the graphs")?.into();
    std::fs::create_dir_all(&folder)?;
    let mut check = Check { folder, failed: 0 };
    check.writers()?;
    check.forecasters()?;
    check.traders()?;
    check.imagers()?;
    ensure!(check.failed == 0, "{} graphs differ", check.failed);
    Ok(())
}
