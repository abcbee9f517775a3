//! What training needs (`Task`), and what the command line needs beside it (`Recipe`). `Predict` adds the verb predict.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde_json::Value;
use zoo_layers::{Mode, ops};
use zoo_training::{ConfigOf, Loss, NoSettings, Preset, Recipe, Split, Task};

use crate::{Config, Network, DataSettings, Table};

pub struct MyTask(Table);

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

    /// Every fifth row validates.
    fn samples(&self, split: Split) -> usize {
        let (all, valid) = (self.0.rows.len(), self.0.rows.len() / 5);
        if split == Split::Train { all - valid } else { valid }
    }

    fn batch(&self, split: Split, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let row = |i: usize| if split == Split::Train { i / 4 * 5 + i % 4 } else { i * 5 + 4 };
        self.0.batch(indices.iter().map(|i| row(*i)))
    }

    fn loss(&self, model: &Network, batch: &(Tensor, Tensor), mode: Mode) -> Result<Loss> {
        Ok(Loss::new(ops::mse(&self.forward(model, batch, mode)?, &batch.1)?))
    }
}

impl Recipe for MyTask {
    const SUMMARY: &'static str = "tells the last column of a table from the others";
    const DATA: &'static str = "a CSV file of numbers with a header; points of a curve without one";
    const PRESETS: &'static [Preset] = &[Preset {
        name: "default",
        summary: "32 hidden units, 40 epochs",
        toml: "[model]\nhidden = 32\n[train]\nepochs = 40\nlr = 0.01\n",
    }];
    const JUDGED: Split = Split::Valid;

    fn settle(config: &mut ConfigOf<Self>) -> zoo_training::Result<()> {
        config.model.features = Table::read(&config.data)?.rows[0].len() - 1;
        Ok(())
    }

    fn open(_: &Config, data: &DataSettings, _: u64, _: Option<&Value>, _: &Device) -> zoo_training::Result<Self> {
        Table::read(data).map(Self)
    }

    fn forward(&self, model: &Network, batch: &(Tensor, Tensor), mode: Mode) -> Result<Tensor> {
        model.forward(&batch.0, mode)
    }
}
