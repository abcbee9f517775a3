//! A classifier with the trainer: `cargo run --release -p zoo-training --example classifier -- table.csv` trains on a CSV file
//! whose last column is the class (0, 1, 2, …), on two spirals without one. Run it again: it resumes runs/classifier.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use zoo_layers::{Linear, Mode, ops};
use zoo_training::{Config, Event, Loss, NoSettings, NumberTable, Split, Task, TrainConfig, Trainer};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Sizes {
    features: usize,
    hidden: usize,
    classes: usize,
}

/// Columns of features, and the class behind them.
struct Table(NumberTable);

impl Task for Table {
    const NAME: &'static str = "classifier";
    type Architecture = Sizes;
    type Data = NoSettings;
    type Settings = NoSettings;
    type Model = [Linear; 2];
    type Batch = (Tensor, Tensor);

    fn build(sizes: &Sizes, vb: VarBuilder) -> candle_core::Result<[Linear; 2]> {
        let Sizes { features, hidden, classes } = *sizes;
        Ok([Linear::new(features, hidden, vb.pp("first"))?, Linear::new(hidden, classes, vb.pp("second"))?])
    }

    fn samples(&self, split: Split) -> usize {
        self.0.samples(split)
    }

    fn batch(&self, split: Split, indices: &[usize]) -> candle_core::Result<(Tensor, Tensor)> {
        let (all, f) = (self.0.batch(split, indices)?, self.0.columns().len() - 1);
        Ok((all.narrow(1, 0, f)?.contiguous()?, all.narrow(1, f, 1)?.flatten_all()?.to_dtype(DType::I64)?))
    }

    fn fingerprint(&self) -> String {
        self.0.sha256()
    }

    fn loss(&self, [first, second]: &[Linear; 2], (x, y): &(Tensor, Tensor), _: Mode) -> candle_core::Result<Loss> {
        let logits = second.forward(&ops::gelu(&first.forward(x)?)?)?; // (b, classes)
        Ok(Loss::new(ops::cross_entropy(&logits, y, Default::default())?))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let table = Table(match std::env::args().nth(1) {
        Some(path) => NumberTable::read(path.as_ref())?,
        None => NumberTable::new("two spirals", &["x", "y", "class"], (0..500).map(spiral))?,
    });
    let features = table.0.columns().len() - 1;
    let classes = table.0.rows().iter().map(|row| row[features] as usize + 1).max().unwrap_or(1);
    let config = Config {
        model: Sizes { features, hidden: 64, classes },
        data: NoSettings {},
        train: TrainConfig { epochs: 100, lr: 1e-2, eval_every: 100, ..TrainConfig::default() },
        task: NoSettings {},
    };
    let mut print = |event: &Event| {
        if let Event::Evaluated { step, metrics, .. } = event {
            println!("step {step}: validation loss {:.4}", metrics.value("loss"));
        }
    };
    let mut trainer =
        Trainer::begin_or_resume(&table, &config, &Device::Cpu, Path::new("runs/classifier"), &mut print)?;
    let outcome = trainer.train(&mut print, &|| false)?;
    println!("{} steps; best validation loss and its step: {:?}", outcome.steps, outcome.best);
    Ok(())
}

fn spiral(i: u32) -> Vec<f32> {
    let (t, side) = (0.5 + 5. * (i as f32 * 0.618_034).fract(), if i.is_multiple_of(2) { 1. } else { -1. });
    vec![side * t * t.cos(), side * t * t.sin(), (i % 2) as f32]
}
