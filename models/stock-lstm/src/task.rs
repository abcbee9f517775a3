//! What training, evaluation and prediction need.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::{Map, Value};
use zoo_layers::onnx::Graph;
use zoo_layers::{Mode, ops};
use zoo_training::health::{Probe, ProbeKind, Profile};
use zoo_training::{
    Error, Evaluation, Export, Flag, Foreign, Import, Layout, Loss, Metrics, Name, NoSettings, Predict, Prediction,
    Preset, Recipe, Request, Split, Task, TrainConfig, mean_loss,
};

use crate::config::NAME;
use crate::data::{StockTask, VALIDATION, scaler};
use crate::predict::ForecastOptions;
use crate::{Config, DataSettings, FeatureSet, Forecaster, StockLstm};

/// Flags for how a price file is read.
const FLAGS: &[Flag] = &Flag::each(zoo_market::READING_FLAGS);

impl Task for StockTask {
    const NAME: &'static str = NAME;
    type Architecture = Config;
    type Data = DataSettings;
    type Settings = NoSettings;
    type Model = StockLstm;
    /// Scaled features (b, t, f) and scaled targets (b, 1).
    type Batch = (Tensor, Tensor);

    fn build(config: &Config, vb: VarBuilder) -> Result<StockLstm> {
        StockLstm::new(config, vb)
    }

    fn fingerprint(&self) -> String {
        let numbers = self.days.bars.iter().flat_map(|b| [b.open, b.high, b.low, b.close, b.volume]);
        let splits = self.splits.iter().map(|n| *n as u64);
        let bytes: Vec<u8> = numbers.map(f64::to_bits).chain(splits).flat_map(u64::to_le_bytes).collect();
        zoo_checkpoint::sha256_of(&bytes)
    }

    fn fitted(&self) -> Value {
        let mut fitted = serde_json::to_value(&self.scaler).unwrap_or_default();
        let range = self.range(Split::Valid);
        // Simulated days share no more than dates with real ones.
        if !range.is_empty() && !self.simulated {
            // The days that chose the weights: what intervals are made of later.
            let day = |i: usize| Value::from(self.days.dates[self.target_day(i)].to_string());
            fitted[VALIDATION] = [day(range.start), day(range.end - 1)].into_iter().collect();
        }
        fitted
    }

    fn samples(&self, split: Split) -> usize {
        self.range(split).len()
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        self.windows(split, indices)
    }

    /// Mean squared error of the scaled target over the batch.
    fn loss(&self, model: &StockLstm, batch: &(Tensor, Tensor), mode: Mode) -> Result<Loss> {
        Ok(Loss::new(ops::mse(&self.forward(model, batch, mode)?, &batch.1)?))
    }

    fn probes(&self, model: &StockLstm, (x, _): &(Tensor, Tensor)) -> Result<Vec<Probe>> {
        let (state, forecast) = model.activations(x)?;
        Ok(vec![
            Probe::new("window", ProbeKind::Input, x),
            Probe::new("lstm", ProbeKind::Activation, &state),
            Probe::new("forecast", ProbeKind::Output, &forecast),
        ])
    }

    fn health() -> Profile {
        // The units of an LSTM are what they are.
        Profile { units: None, ..Profile::default() }
    }

    fn validate(&self, model: &StockLstm, split: Split) -> Result<Metrics> {
        let loss = mean_loss(self, model, split)?;
        Ok([("loss".into(), loss)].into_iter().chain(self.judge(split, &self.forecasts(model, split)?)).collect())
    }

    fn baseline(&self, split: Split) -> Result<Option<(Name, f64)>> {
        Ok(Some(self.simple(split)))
    }
}

impl Recipe for StockTask {
    const SUMMARY: &'static str = "LSTM that forecasts the next day's closing price from 60 days";
    const PRESETS: &'static [Preset] = &[
        Preset { name: "default", summary: "close only, 2 layers of 50", toml: "" },
        Preset {
            name: "ohlcv",
            summary: "open, high, low, close and volume",
            toml: "[model]\ninput = 5\n[data]\nfeatures = \"ohlcv\"\n",
        },
    ];
    const FLAGS: &'static [Flag] = FLAGS;
    const DATA: &'static str = "a daily price file (CSV with Date and Close); simulated prices without one";

    fn training() -> TrainConfig {
        TrainConfig { epochs: 100, batch_size: 32, lr: 1e-3, ..TrainConfig::default() }
    }

    fn explain(config: &Config) -> String {
        let &Config { input, hidden, layers, .. } = config;
        let layer = |from: usize| 4 * (from * hidden + hidden * hidden + 2 * hidden);
        let mut parts = vec![];
        for l in 0..layers {
            let from = if l == 0 { input } else { hidden };
            parts.push(format!(
                "LSTM layer {}: 4 gates x ({from} x {hidden} input + {hidden} x {hidden} recurrent + {hidden} + {hidden}, two biases) = {}",
                l + 1,
                layer(from)
            ));
        }
        parts.push(format!("linear: {hidden} x 1 + 1 = {}", hidden + 1));
        parts.join("\n")
    }

    fn flops(config: &Config, _: &DataSettings) -> Option<f64> {
        let &Config { input, hidden, layers, window, .. } = config;
        let per_day: usize = (0..layers).map(|l| 4 * hidden * (if l == 0 { input } else { hidden } + hidden)).sum();
        Some(2. * (window * per_day + hidden) as f64)
    }

    fn open(
        config: &Config,
        source: &DataSettings,
        seed: u64,
        fitted: Option<&Value>,
        device: &Device,
    ) -> zoo_training::Result<Self> {
        Self::new(config, source, seed, fitted, device)
    }

    fn check(config: &Config, fitted: &Value) -> zoo_training::Result<()> {
        scaler(config, fitted).map(|_| ())
    }

    fn describe_data(&self) -> String {
        let origin = if self.simulated { "simulated prices" } else { "prices" };
        let (dates, n) = (&self.days.dates, self.days.dates.len());
        let [train, valid, test] = [Split::Train, Split::Valid, Split::Test].map(|s| self.samples(s));
        format!(
            "{origin}, {n} days {} to {}; samples: {train} train, {valid} valid, {test} test",
            dates[0],
            dates[n - 1]
        )
    }

    fn warnings(&self) -> Vec<String> {
        self.doubts()
    }

    fn forward(&self, model: &StockLstm, (x, _): &(Tensor, Tensor), mode: Mode) -> Result<Tensor> {
        model.forward(x, mode)
    }

    fn evaluate(&self, model: &StockLstm, split: Split) -> Result<Evaluation> {
        self.compare(model, split)
    }
}

impl Predict for StockTask {
    type Options = ForecastOptions;
    const FLAGS: &'static [Flag] = crate::predict::FLAGS;

    fn predict(
        model: &StockLstm,
        config: &Config,
        source: &DataSettings,
        fitted: &Value,
        request: &Request<ForecastOptions>,
        device: &Device,
    ) -> zoo_training::Result<Prediction> {
        let forecaster = Forecaster::new(model.clone(), config.clone(), scaler(config, fitted)?, device)?;
        crate::predict::predict(&forecaster, source, &fitted[VALIDATION], request)
    }
}

/// PyTorch's `nn.LSTM` and `nn.Linear` in a module that calls them so; others are renamed by rules.
const PYTORCH: Layout = Layout { name: "pytorch", import: "", export: "", entry: "", sidecar: "", keeps_ours: true };

impl Export for StockTask {
    const STATE: Option<&'static str> = Some("h and c of the LSTM");

    fn export(model: &StockLstm, config: &Config, fitted: &Value, state: bool, graph: &mut Graph) -> Result<()> {
        model.export(graph, config, &scaler(config, fitted).map_err(candle_core::Error::wrap)?, state)
    }
}

impl Import for StockTask {
    const LAYOUTS: &'static [Layout] = &[PYTORCH];

    fn recognize(tensors: &[(&str, &[usize])]) -> Option<&'static Layout> {
        let has = |wanted: &str| tensors.iter().any(|(name, _)| *name == wanted);
        (has("lstm.weight_ih_l0") && has("linear.weight")).then_some(&PYTORCH)
    }

    /// Sizes are those of the tensors; the scaler is fitted to the data, as it is before a training.
    fn adopt(foreign: &Foreign) -> zoo_training::Result<(Config, DataSettings, Value)> {
        let refuse = |what: String| Err(Error::Usage(what));
        let shape = |name: &str| foreign.tensors.iter().find(|(n, _)| *n == name).map(|(_, shape)| *shape);
        let Some([gates, input]) = shape("lstm.weight_ih_l0") else {
            return refuse("lstm.weight_ih_l0 is no matrix: it is no LSTM of PyTorch's".into());
        };
        if foreign.tensors.iter().any(|(name, _)| name.ends_with("_reverse")) {
            return refuse("its LSTM reads in both directions, stock-lstm's in one".into());
        }
        let layers = foreign.tensors.iter().filter(|(name, _)| name.starts_with("lstm.weight_ih_l")).count();
        let Some(data) = foreign.data else {
            return refuse(
                "its tensors do not tell how prices were scaled: name the file that it was trained on by data.path"
                    .into(),
            );
        };
        let features = match foreign.setting("data.features") {
            None if *input == FeatureSet::Ohlcv.len() => FeatureSet::Ohlcv,
            _ => FeatureSet::default(),
        };
        let model = Config { input: *input, hidden: gates / 4, layers, ..Config::default() };
        let data = DataSettings { path: data.display().to_string(), features, ..DataSettings::default() };
        let config = foreign.configured::<Self>(model, data)?;
        let target = format!("{:?}", config.data.target).to_lowercase();
        for (key, value) in [("model.window", config.model.window.to_string()), ("data.target", target)] {
            if foreign.setting(key).is_none() {
                let doubt = format!("its tensors do not tell {key}, which is taken as {value} (--set {key}=…)");
                foreign.doubts.borrow_mut().push(doubt);
            }
        }
        let task = Self::open(&config.model, &config.data, config.train.seed, None, &Device::Cpu)?;
        Ok((config.model, config.data, task.fitted()))
    }

    fn entries(_: &Layout, _: &Config, _: &Value) -> zoo_training::Result<Map<String, Value>> {
        Ok(Map::new())
    }
}

#[cfg(test)]
mod tests {
    use zoo_layers::Params;

    use crate::Target;
    use crate::features::raw;

    use super::*;

    fn open(config: &Config, source: &DataSettings) -> zoo_training::Result<StockTask> {
        StockTask::open(config, source, 3, None, &Device::Cpu)
    }

    #[test]
    fn the_reference_has_31051_parameters_in_10_tensors_of_pytorchs_names() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        StockLstm::new(&Config::default(), params.builder())?;
        let all = params.all();
        assert_eq!((all.len(), all.iter().map(|p| p.var.elem_count()).sum::<usize>()), (10, 31_051));
        let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names[..4], ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"]);
        assert_eq!(names[8..], ["linear.weight", "linear.bias"]);
        let explained = StockTask::explain(&Config::default());
        assert!(["10600", "20400", "51"].iter().all(|n| explained.contains(n)), "{explained}");
        Ok(())
    }

    #[test]
    fn splits_are_in_time_order_and_the_scaler_sees_the_training_part_alone() -> zoo_training::Result<()> {
        for (target, features) in [
            (Target::Return, FeatureSet::Close),
            (Target::Close, FeatureSet::Close),
            (Target::Return, FeatureSet::Ohlcv),
        ] {
            let source = DataSettings { target, features, simulated_days: 300, ..DataSettings::default() };
            let config = Config { input: features.len(), ..Config::tiny() };
            let task = open(&config, &source)?;
            let [valid, test, end] = task.splits;
            assert_eq!(task.target_day(end - 1), 299);
            assert!(0 < valid && valid < test && test < end);
            let last_train_day = task.target_day(valid - 1);
            let raws: Vec<_> =
                task.days.bars[..=last_train_day].windows(2).map(|w| raw(&w[1], &w[0], target, features)).collect();
            assert_eq!(task.scaler, crate::Scaler::fit(&raws, target, features));
            // A sample's window ends the day before its target, whose scaled value means its price.
            let (x, y) = task.batch(Split::Valid, &[0])?;
            assert_eq!(x.dims(), [1, 5, features.len()]);
            let day = task.target_day(valid);
            let price =
                task.scaler.price(f64::from(y.flatten_all()?.to_vec1::<f32>()?[0]), task.days.bars[day - 1].close);
            assert!((price / task.days.bars[day].close - 1.).abs() < 1e-6, "{price}");
            let window = task.scaler.window(&task.days.bars[day - 6..day])?;
            assert_eq!(x.flatten_all()?.to_vec1::<f32>()?, window);
        }
        Ok(())
    }

    #[test]
    fn metrics_of_known_forecasts_are_known() -> zoo_training::Result<()> {
        let task = open(&Config::tiny(), &DataSettings { simulated_days: 200, ..DataSettings::default() })?;
        let days =
            |f: &dyn Fn(usize) -> f64| -> Vec<f64> { task.range(Split::Test).map(|i| f(task.target_day(i))).collect() };
        let close = |d: usize| task.days.bars[d].close;
        let perfect = task.judge(Split::Test, &days(&close));
        let all = [("rmse", 0.), ("mae", 0.), ("mape", 0.), ("mase", 0.), ("directional_accuracy", 100.)];
        assert_eq!(perfect, Metrics::from(all));
        let off = task.judge(Split::Test, &days(&|d| 1.01 * close(d)));
        assert!((off.value("mape") - 1.).abs() < 1e-9);
        let unchanged = task.judge(Split::Test, &days(&|d| close(d - 1)));
        assert_eq!(unchanged.value("directional_accuracy"), 50.);
        assert_eq!(task.judge(Split::Test, &task.baseline(Split::Test, "last_value")), unchanged);
        assert_eq!(task.advantage(Split::Test, &days(&|d| close(d - 1)), "last_value"), 0.);
        // What it is measured by, but for the days before the first window.
        let trained = task.judge(Split::Train, &task.baseline(Split::Train, "last_value")).value("mase");
        assert!((trained - 1.).abs() < 0.1, "{trained}");
        assert!(task.advantage(Split::Test, &days(&close), "last_value") > 2.);
        assert!(task.advantage(Split::Test, &days(&|d| 2. * close(d)), "last_value") < -2.);
        Ok(())
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_way_out() -> zoo_training::Result<()> {
        let message =
            |config: &Config, source: &DataSettings| open(config, source).map(|_| ()).unwrap_err().to_string();
        assert!(
            message(&Config::default(), &DataSettings { simulated_days: 60, ..DataSettings::default() })
                .contains("needs at least 68")
        );
        let task = open(&Config::default(), &DataSettings { simulated_days: 68, ..DataSettings::default() })?;
        assert!([Split::Train, Split::Valid, Split::Test].iter().all(|s| task.samples(*s) > 0));
        assert!(
            message(&Config::default(), &DataSettings { features: FeatureSet::Ohlcv, ..DataSettings::default() })
                .contains("the preset ohlcv")
        );
        assert!(
            message(&Config::default(), &DataSettings { valid: 0.6, test: 0.4, ..DataSettings::default() })
                .contains("training part")
        );
        let close = open(
            &Config::tiny(),
            &DataSettings { target: Target::Close, simulated_days: 2000, ..DataSettings::default() },
        )?;
        assert!(close.warnings()[0].contains("outside the training range"), "{:?}", close.warnings());
        Ok(())
    }
}
