//! What training needs (`Task`), and what the command line needs beside it (`Recipe`). A task that is `Predict`, too, gets the
//! verb predict by `Model::of::<MyTask>().predicts()` in main.rs.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::{Value, json};
use zoo_layers::{Mode, ops};
use zoo_training::{ConfigOf, Loss, Metrics, NoSettings, NumberTable, Preset, Recipe, Scaling, Split, Task, mean_loss};

use crate::{Config, DataSettings, Network, data};

pub struct MyTask {
    table: NumberTable,
    scaling: Scaling,
}

impl Task for MyTask {
    const NAME: &'static str = "my-model";
    type Architecture = Config;
    type Data = DataSettings;
    type Settings = NoSettings;
    type Model = Network;
    type Batch = (Tensor, Tensor);

    fn build(config: &Config, vb: VarBuilder) -> Result<Network> {
        Network::new(config, vb)
    }

    /// Of five rows, three train, one validates (it says which weights are best), one tests.
    fn samples(&self, split: Split) -> usize {
        self.table.samples(split)
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let (all, f) = (self.table.batch(split, indices)?, self.table.columns().len() - 1);
        Ok((all.narrow(1, 0, f)?.contiguous()?, all.narrow(1, f, 1)?.contiguous()?))
    }

    fn loss(&self, model: &Network, batch: &(Tensor, Tensor), mode: Mode) -> Result<Loss> {
        Ok(Loss::new(ops::mse(&self.forward(model, batch, mode)?, &batch.1)?))
    }

    /// The loss, which decides, and the root mean squared error in the predicted column's own unit.
    fn validate(&self, model: &Network, split: Split) -> Result<Metrics> {
        let loss = mean_loss(self, model, split)?;
        Ok([("loss", loss), ("rmse", loss.sqrt() * self.scaling.deviation.last().unwrap_or(&1.))].into())
    }

    /// A run is not resumed on other data.
    fn fingerprint(&self) -> String {
        self.table.sha256()
    }

    /// What the weights are kept with.
    fn fitted(&self) -> Value {
        json!(self.scaling)
    }
}

impl Recipe for MyTask {
    const SUMMARY: &'static str = "predicts a column of a table from the others";
    const DATA: &'static str = "a CSV file of numbers with a header; points of a curve without one";
    const PRESETS: &'static [Preset] = &[Preset {
        name: "default",
        summary: "32 hidden units, 40 epochs",
        toml: "[model]\nhidden = 32\n[train]\nepochs = 40\nlr = 0.01\n",
    }];

    /// The data decide the number of features.
    fn settle(config: &mut ConfigOf<Self>) -> zoo_training::Result<()> {
        config.model.features = data::read(&config.data)?.columns().len() - 1;
        Ok(())
    }

    /// `fitted` is that of trained weights; without them, the training part decides. The number is the seed.
    fn open(_: &Config, data: &DataSettings, _: u64, fitted: Option<&Value>, _: &Device) -> zoo_training::Result<Self> {
        let table = data::read(data)?;
        let scaling = fitted.map_or_else(|| Ok(table.scaling()), Scaling::of)?;
        Ok(Self { table: table.scaled(&scaling)?, scaling })
    }

    fn forward(&self, model: &Network, (x, _): &(Tensor, Tensor), _: Mode) -> Result<Tensor> {
        model.forward(x)
    }
}
