//! A text to learn from, to the metrics of a model of its characters.
#![no_main]

#[path = "file.rs"]
mod file;

use candle_core::Device;
use zoo_char_gpt::{CharTask, Config, DataSettings};
use zoo_layers::Params;
use zoo_training::{Recipe, Split, Task, TrainConfig};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    file::with("text.txt", bytes, |path| {
        let model = Config { context: 4, layers: 1, heads: 1, width: 8, hidden: 8, ..Config::default() };
        let data = DataSettings { path: path.display().to_string(), eval_windows: 8, ..DataSettings::default() };
        let train = TrainConfig { steps: 1, ..CharTask::training() };
        let mut config = zoo_training::Config { model, data, train, task: Default::default() };
        if CharTask::settle(&mut config).is_err() {
            return;
        }
        let Ok(task) = CharTask::open(&config.model, &config.data, 1, None, &Device::Cpu) else { return };
        for split in [Split::Train, Split::Valid].into_iter().filter(|s| task.samples(*s) > 0) {
            task.batch(split, &[0, task.samples(split) - 1]).expect("windows of the text");
        }
        if task.samples(Split::Valid) > 0 {
            let model = CharTask::build(&config.model, Params::init(1, &Device::Cpu).builder()).expect("a model");
            task.validate(&model, Split::Valid).expect("metrics");
        }
    });
});
