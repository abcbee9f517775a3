//! EEG to be imaged: tables in text. (MATLAB's and NumPy's files have targets of their own.)
#![no_main]

#[path = "file.rs"]
mod file;

use candle_core::Device;
use zoo_deepsif::{Config, DataSettings, DeepSifTask, ImageOptions};
use zoo_layers::Params;
use zoo_training::{Predict, Recipe, Request, Task};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let config = Config::tiny();
    let mut data = DataSettings::default();
    data.simulation.steps = 50;
    let task = DeepSifTask::open(&config, &data, 1, None, &Device::Cpu).expect("simulated data");
    file::with("eeg.csv", bytes, |path| {
        let model = DeepSifTask::build(&config, Params::init(1, &Device::Cpu).builder()).expect("a model");
        let request = Request { input: path, options: ImageOptions::default() };
        let _ = DeepSifTask::predict(model, &config, &data, &task.fitted(), &request, &Device::Cpu);
    });
});
