//! A classifier with the trainer: `cargo run --release -p zoo-training --example classifier -- table.csv` trains on a CSV file
//! whose last column is the class (0, 1, 2, …), on two spirals without one. Run it again: it resumes runs/classifier.

use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use zoo_layers::{Linear, Mode, ops};
use zoo_training::{Config, Event, Loss, NoSettings, Split, Task, TrainConfig, Trainer};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Sizes {
    features: usize,
    hidden: usize,
    classes: usize,
}

/// Rows of features, and their classes.
struct Table(Vec<(Vec<f32>, u32)>);

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

    /// Every fifth row validates.
    fn samples(&self, split: Split) -> usize {
        if split == Split::Train { self.0.len() - self.0.len() / 5 } else { self.0.len() / 5 }
    }

    fn batch(&self, split: Split, indices: &[usize]) -> candle_core::Result<(Tensor, Tensor)> {
        let at = |i: &usize| if split == Split::Train { i / 4 * 5 + i % 4 } else { i * 5 + 4 };
        let rows: Vec<&(Vec<f32>, u32)> = indices.iter().map(|i| &self.0[at(i)]).collect();
        let x: Vec<f32> = rows.iter().flat_map(|row| row.0.clone()).collect();
        let y: Vec<i64> = rows.iter().map(|row| i64::from(row.1)).collect();
        Ok((Tensor::from_vec(x, (rows.len(), rows[0].0.len()), &Device::Cpu)?, Tensor::new(y, &Device::Cpu)?))
    }

    fn loss(&self, [first, second]: &[Linear; 2], (x, y): &(Tensor, Tensor), _: Mode) -> candle_core::Result<Loss> {
        let logits = second.forward(&first.forward(x)?.gelu_erf()?)?; // (b, classes)
        Ok(Loss::new(ops::cross_entropy(&logits, y, Default::default())?))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let table = match std::env::args().nth(1) {
        Some(path) => read(&std::fs::read_to_string(path)?)?,
        None => Table((0..500).map(spiral).collect()),
    };
    let classes = table.0.iter().map(|row| row.1 as usize + 1).max().unwrap_or(1);
    let config = Config {
        model: Sizes { features: table.0[0].0.len(), hidden: 64, classes },
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

/// A header, then rows of numbers with the class in the last column.
fn read(text: &str) -> Result<Table, Box<dyn std::error::Error>> {
    let row = |line: &str| -> Result<(Vec<f32>, u32), Box<dyn std::error::Error>> {
        let (features, class) = line.rsplit_once(',').ok_or("a row without a comma")?;
        Ok((features.split(',').map(|v| v.trim().parse()).collect::<Result<_, _>>()?, class.trim().parse()?))
    };
    Ok(Table(text.lines().skip(1).map(row).collect::<Result<_, _>>()?))
}

fn spiral(i: u32) -> (Vec<f32>, u32) {
    let (t, side) = (0.5 + 5. * (i as f32 * 0.618_034).fract(), if i.is_multiple_of(2) { 1. } else { -1. });
    (vec![side * t * t.cos(), side * t * t.sin()], i % 2)
}
