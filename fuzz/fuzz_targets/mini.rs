//! A task of one parameter.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use zoo_layers::Mode;
use zoo_training::config::OptimizerConfig;
use zoo_training::{Config, ConfigOf, Loss, NoSettings, Recipe, Split, Task, TrainConfig};

pub struct Mini;

impl Task for Mini {
    const NAME: &'static str = "mini";
    type Architecture = NoSettings;
    type Data = NoSettings;
    type Settings = NoSettings;
    type Model = Tensor;
    type Batch = Tensor;

    fn build(_: &NoSettings, vb: VarBuilder) -> candle_core::Result<Tensor> {
        vb.get_with_hints(1, "weight", candle_nn::Init::Const(1.))
    }

    fn samples(&self, _: Split) -> usize {
        4
    }

    fn batch(&self, _: Split, indices: &[usize]) -> candle_core::Result<Tensor> {
        Tensor::full(1f32, indices.len(), &Device::Cpu)
    }

    fn loss(&self, weight: &Tensor, batch: &Tensor, _: Mode) -> candle_core::Result<Loss> {
        Ok(Loss::new(batch.broadcast_mul(weight)?.sqr()?.mean_all()?))
    }
}

impl Recipe for Mini {
    const SUMMARY: &'static str = "one parameter";
    const DATA: &'static str = "none";

    fn open(
        _: &NoSettings,
        _: &NoSettings,
        _: u64,
        _: Option<&serde_json::Value>,
        _: &Device,
    ) -> zoo_training::Result<Self> {
        Ok(Self)
    }

    fn forward(&self, weight: &Tensor, batch: &Tensor, _: Mode) -> candle_core::Result<Tensor> {
        batch.broadcast_mul(weight)
    }
}

#[allow(dead_code)] // Not every target trains.
pub fn config(steps: u64) -> ConfigOf<Mini> {
    let train = TrainConfig { steps, batch_size: 2, optimizer: OptimizerConfig::default(), ..TrainConfig::default() };
    Config { model: NoSettings {}, data: NoSettings {}, train, task: NoSettings {} }
}
