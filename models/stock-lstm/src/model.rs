//! The network and the trained forecaster.
//!
//! Letters: b batch, t days of the window, f features of a day, h hidden.

use std::path::Path;

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_checkpoint::Description;
use zoo_layers::onnx::{Dim, Element, Graph};
use zoo_layers::ops::Activation;
use zoo_layers::{Dropout, Linear, Lstm, LstmConfig, Mode, Params};

use crate::config::NAME;
use crate::{Bar, Config, FeatureSet, Scaler};

/// Stacked LSTM, dropout, and a linear head on the last day's output. Parameters have PyTorch's names:
/// `lstm.weight_ih_l0` … `linear.bias`.
#[derive(Clone, Debug)]
pub struct StockLstm {
    lstm: Lstm,
    dropout: Dropout,
    linear: Linear,
}

impl StockLstm {
    /// Defines the parameters.
    ///
    /// # Errors
    /// Sizes of zero.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { input, hidden, layers, dropout, window } = config;
        if [input, hidden, layers, window].contains(&0) {
            bail!("model.input, hidden, layers and window must be at least 1")
        }
        if layers > 1000 {
            bail!("model.layers is {layers}, expected at most 1000")
        }
        Ok(Self {
            lstm: Lstm::new(LstmConfig { input, hidden, layers, dropout }, vb.pp("lstm"))?,
            dropout: Dropout::new(dropout, "dropout"),
            linear: Linear::new(hidden, 1, vb.pp("linear"))?,
        })
    }

    /// Scaled features (b, t, f) to the scaled target (b, 1).
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let last = self.lstm.forward_last(x, mode)?; // (b, h)
        self.linear.forward(&self.dropout.forward(&last, mode)?) // (b, 1)
    }

    /// Adds the model and its `scaler` to a graph: `bars` (batch, days, 1 or 5), closes or open, high, low, close and volume, oldest first, to
    /// `forecast` (batch), the next close, in double precision. With `state` the LSTM's `h` and `c` (layers, batch, h) are inputs `h_in`, `c_in`
    /// and outputs `h_out`, `c_out`.
    ///
    /// # Errors
    /// See [`Graph::parameter`].
    pub fn export(&self, graph: &mut Graph, config: &Config, scaler: &Scaler, state: bool) -> Result<()> {
        scaler.check(config.input)?;
        let (batch, f) = (Dim::Any("batch"), Dim::Of(config.input));
        let columns = if config.input == 1 { "Adjusted closes" } else { "Adjusted open, high, low, close and volume" };
        let again = if state { "; a later call begins with the last bar of the call before it" } else { "" };
        let help = format!("{columns}, oldest first, at least two; trained on {} days{again}", config.window + 1);
        let bars = graph.input("bars", Element::F64, &[batch.clone(), Dim::Any("days"), f], &help)?;
        let state_dims = [Dim::Of(config.layers), batch.clone(), Dim::Of(config.hidden)];
        let mut part = |name: &str, what: &str| graph.input(name, Element::F32, &state_dims, what);
        let before = match state {
            true => Some([
                part("h_in", "The hidden state to begin with, such as zeros")?,
                part("c_in", "The cell state to begin with, such as zeros")?,
            ]),
            false => None,
        };
        let x = scaler.export(graph, &bars)?; // (b, t, f)
        let [y, h, c] = self.lstm.export(graph, &x, before.as_ref().map(|[h, c]| [h, c]))?;
        let last = graph.last(&y)?; // (b, h)
        let scaled = self.linear.export(graph, &last, Activation::Identity)?; // (b, 1)
        let forecast = scaler.export_price(graph, &scaled, &bars)?; // (b)
        graph.output("forecast", &forecast, Element::F64, &[batch], "The close of the day behind the last bar")?;
        if state {
            graph.output("h_out", &h, Element::F32, &state_dims, "The hidden state behind the last bar")?;
            graph.output("c_out", &c, Element::F32, &state_dims, "The cell state behind the last bar")?;
        }
        Ok(())
    }

    /// The last day's state (b, h) and the forecast (b, 1) of scaled features (b, t, f), when evaluating.
    ///
    /// # Errors
    /// candle's.
    pub fn activations(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let last = self.lstm.forward_last(x, Mode::Eval)?;
        let forecast = self.linear.forward(&last)?;
        Ok((last, forecast))
    }

    /// Loads trained weights: weights, sizes and scaler are in the one file.
    ///
    /// # Errors
    /// The file cannot be read, is not a StockLSTM, or its tensors do not fit its own description.
    pub fn load(path: &Path, device: &Device) -> Result<Forecaster> {
        let (config, scaler, tensors): (Config, Scaler, _) =
            Description::open(path, NAME, device).map_err(candle_core::Error::wrap)?;
        let named = |e| candle_core::Error::msg(format!("{}: {e}", path.display()));
        let (model, _) = Params::restore(tensors, device, |vb| Self::new(&config, vb)).map_err(named)?;
        Forecaster::new(model, config, scaler, device).map_err(named)
    }
}

/// A trained [`StockLstm`] with the scaler it was trained with.
#[derive(Clone, Debug)]
pub struct Forecaster {
    model: StockLstm,
    config: Config,
    scaler: Scaler,
    device: Device,
}

impl Forecaster {
    pub(crate) fn new(model: StockLstm, config: Config, scaler: Scaler, device: &Device) -> Result<Self> {
        scaler.check(config.input)?;
        Ok(Self { model, config, scaler, device: device.clone() })
    }

    /// The days that a forecast is made from: the model's window and the day before it.
    pub fn days(&self) -> usize {
        self.config.window + 1
    }

    /// What the model sees of a day.
    pub fn features(&self) -> FeatureSet {
        self.scaler.features
    }

    /// The lowest and the highest close that it was fitted to, if it is one of scaled prices.
    #[cfg(feature = "train")]
    pub(crate) fn range(&self) -> Option<(f64, f64)> {
        self.scaler.range()
    }

    /// The next day's close from at least [`days`](Self::days) closes (adjusted, oldest first), in their unit.
    ///
    /// # Errors
    /// Too few days, prices that are not positive, or a model that needs more than closes.
    pub fn predict(&self, closes: &[f64]) -> Result<f64> {
        if self.scaler.features != FeatureSet::Close {
            bail!("this model was trained on open, high, low, close and volume: use predict_bars")
        }
        self.predict_bars(&closes.iter().map(|&c| Bar::closing(c)).collect::<Vec<_>>())
    }

    /// The closes of the next `horizon` days, each forecast taken as the close that the following is made from. Further
    /// ahead they tend to a constant drift: the model never saw its own forecasts in training.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub fn predict_ahead(&self, closes: &[f64], horizon: usize) -> Result<Vec<f64>> {
        let start = closes.len().saturating_sub(self.days());
        let mut window = closes[start..].to_vec();
        for _ in 0..horizon {
            window.push(self.predict(&window)?);
        }
        Ok(window.split_off(closes.len() - start))
    }

    /// The next day's close from at least [`days`](Self::days) adjusted bars, oldest first.
    ///
    /// # Errors
    /// Too few days, or prices that are not positive.
    pub fn predict_bars(&self, bars: &[Bar]) -> Result<f64> {
        let Some(start) = bars.len().checked_sub(self.days()) else {
            bail!("a forecast needs {} days, got {}", self.days(), bars.len())
        };
        let bars = &bars[start..];
        let x = Tensor::from_vec(self.scaler.window(bars)?, (1, self.config.window, self.config.input), &self.device)?;
        let y = self.model.forward(&x, Mode::Eval)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(self.scaler.price(f64::from(y[0]), bars[bars.len() - 1].close))
    }
}
