//! `guest`: a temporal convolution that tells the next value of a series from the last ones, built of candle's own layers.

use std::path::Path;
use std::process::ExitCode;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Linear, Module, VarBuilder, conv1d, linear};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo_cli::{Model, Zoo};
use zoo_layers::Mode;
use zoo_layers::onnx::{Attribute, Dim, Element, Graph};
use zoo_training::health::{Probe, ProbeKind};
use zoo_training::{
    Error, Evaluation, Export, Flag, Loss, Metrics, NoSettings, Predict, Prediction, Recipe, Request, Split, Task,
    TrainConfig,
};

fn main() -> ExitCode {
    Zoo::new("guest", env!("CARGO_PKG_VERSION")).model(Model::of::<Tides>().predicts().exports()).main()
}

/// The table `[model]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Architecture {
    window: usize,
    channels: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Self { window: 16, channels: 8 }
    }
}

/// The table `[data]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DataSettings {
    /// A file of numbers, one a line; a sum of sines if empty.
    path: String,
    /// Values of it to use.
    length: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self { path: String::new(), length: 400 }
    }
}

struct Network {
    convolution: Conv1d,
    head: Linear,
}

impl Network {
    /// Windows (b, w) to the values after them (b, 1), and what lies between.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let hidden = self.convolution.forward(&x.unsqueeze(1)?)?.relu()?; // (b, c, w)
        Ok((self.head.forward(&hidden.flatten_from(1)?)?, hidden))
    }
}

struct Tides {
    series: Vec<f32>,
    window: usize,
}

fn series(source: &DataSettings) -> zoo_training::Result<Vec<f32>> {
    if source.path.is_empty() {
        return Ok((0..source.length).map(|t| t as f32).map(|t| (0.3 * t).sin() + 0.5 * (0.11 * t).cos()).collect());
    }
    let path = Path::new(&source.path);
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let number = |(i, line): (usize, &str)| {
        line.trim().parse().map_err(|_| Error::Data(format!("{}: line {}: no number", path.display(), i + 1)))
    };
    text.lines().enumerate().take(source.length).map(number).collect()
}

impl Task for Tides {
    const NAME: &'static str = "tides";
    type Architecture = Architecture;
    type Data = DataSettings;
    type Settings = NoSettings;
    type Model = Network;
    type Batch = (Tensor, Tensor);

    fn build(a: &Architecture, vb: VarBuilder) -> Result<Network> {
        let padded = Conv1dConfig { padding: 1, ..Conv1dConfig::default() };
        Ok(Network {
            convolution: conv1d(1, a.channels, 3, padded, vb.pp("convolution"))?,
            head: linear(a.channels * a.window, 1, vb.pp("head"))?,
        })
    }

    fn samples(&self, split: Split) -> usize {
        let all = self.series.len() - self.window;
        if split == Split::Train { all - all / 4 } else { all / 4 }
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let first = if split == Split::Train { 0 } else { self.samples(Split::Train) };
        let window = |i: &usize| &self.series[first + i..first + i + self.window];
        let x: Vec<f32> = indices.iter().flat_map(window).copied().collect();
        let y: Vec<f32> = indices.iter().map(|i| self.series[first + i + self.window]).collect();
        let n = indices.len();
        Ok((Tensor::from_vec(x, (n, self.window), &Device::Cpu)?, Tensor::from_vec(y, (n, 1), &Device::Cpu)?))
    }

    fn loss(&self, model: &Network, (x, y): &(Tensor, Tensor), _: Mode) -> Result<Loss> {
        // A foreign operation on the loss, too.
        Ok(Loss::new(((model.forward(x)?.0 - y)?.sqr()?.mean_all()? * 0.5)?))
    }

    fn fingerprint(&self) -> String {
        format!("{:?}", self.series)
    }

    fn probes(&self, model: &Network, (x, _): &(Tensor, Tensor)) -> Result<Vec<Probe>> {
        let (y, hidden) = model.forward(x)?;
        Ok(vec![
            Probe::new("window", ProbeKind::Input, x),
            Probe::new("hidden", ProbeKind::Activation, &hidden.flatten_from(1)?),
            Probe::new("forecast", ProbeKind::Output, &y),
        ])
    }
}

impl Export for Tides {
    fn export(model: &Network, a: &Architecture, _: &Value, _: bool, graph: &mut Graph) -> Result<()> {
        let (convolution, head) = (&model.convolution, &model.head);
        let dims = [Dim::Any("batch"), Dim::Of(a.window)];
        let window = graph.input("window", Element::F32, &dims, "The last values, oldest first")?;
        let x = graph.unsqueeze(&window, &[1])?;
        let weight = graph.parameter(convolution.weight())?;
        let mut parameter = |tensor: Option<&Tensor>| tensor.map(|t| graph.parameter(t)).transpose();
        let (bias, head_bias) = (parameter(convolution.bias())?, parameter(head.bias())?);
        let pads = [("pads", Attribute::Ints(vec![1, 1]))];
        let [hidden] = graph.ops("Conv", &[Some(&x), Some(&weight), bias.as_ref()], &pads);
        let hidden = graph.op("Relu", &[&hidden], &[]);
        let hidden = graph.op("Flatten", &[&hidden], &[]);
        let weight = graph.parameter(head.weight())?;
        let [next] =
            graph.ops("Gemm", &[Some(&hidden), Some(&weight), head_bias.as_ref()], &[("transB", Attribute::Int(1))]);
        graph.output("next", &next, Element::F32, &[Dim::Any("batch"), Dim::Of(1)], "The value behind them")
    }
}

impl Recipe for Tides {
    const SUMMARY: &'static str = "convolution that tells the next value of a series";
    const DATA: &'static str = "a file of numbers, one a line; a sum of sines without one";
    const FLAGS: &'static [Flag] = &[Flag::value("length", "N", "data.length", "Values to use (data.length)")];

    fn training() -> TrainConfig {
        TrainConfig { steps: 200, lr: 1e-2, ..TrainConfig::default() }
    }

    fn open(
        a: &Architecture,
        source: &DataSettings,
        _: u64,
        _: Option<&Value>,
        _: &Device,
    ) -> zoo_training::Result<Self> {
        let (series, window) = (series(source)?, a.window);
        if series.len() < window + 8 {
            return Err(Error::Data(format!("{} values, expected at least {}", series.len(), window + 8)));
        }
        Ok(Self { series, window })
    }

    fn forward(&self, model: &Network, (x, _): &(Tensor, Tensor), _: Mode) -> Result<Tensor> {
        Ok(model.forward(x)?.0)
    }

    /// Beside the last value.
    fn evaluate(&self, model: &Network, split: Split) -> Result<Evaluation> {
        let n = self.samples(split);
        let (x, y) = self.batch(split, &(0..n).collect::<Vec<_>>())?;
        let last = x.narrow(1, self.window - 1, 1)?;
        let error = (last - y)?.sqr()?.mean_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? * 0.5;
        let naive = Metrics::from([("loss", error)]);
        let metrics = self.validate(model, split)?;
        Ok(Evaluation { samples: n, metrics, baselines: vec![("last_value".into(), naive)], ..Evaluation::default() })
    }
}

/// What a prediction is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ahead {
    steps: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { steps: 1 }
    }
}

impl Predict for Tides {
    type Options = Ahead;
    const FLAGS: &'static [Flag] = &[Flag::value("ahead", "N", "predict.steps", "Values to tell [default: 1]")];

    fn predict(
        model: &Network,
        a: &Architecture,
        source: &DataSettings,
        _: &Value,
        request: &Request<Ahead>,
        _: &Device,
    ) -> zoo_training::Result<Prediction> {
        let path = request.input.display().to_string();
        let mut series = series(&DataSettings { path, ..source.clone() })?;
        let mut rows = vec![];
        for step in 1..=request.options.steps {
            let window = series[series.len() - a.window..].to_vec();
            let x = Tensor::from_vec(window, (1, a.window), &Device::Cpu)?;
            let next = model.forward(&x)?.0.flatten_all()?.to_vec1::<f32>()?[0];
            series.push(next);
            rows.push(vec![step.to_string(), next.to_string()]);
        }
        let header = ["step", "value"].map(String::from).to_vec();
        Ok(Prediction { header, rows, ..Prediction::default() })
    }
}
