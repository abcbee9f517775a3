//! EEG of ten channels, to its image.
#![allow(dead_code)] // Targets differ in what they need.

#[path = "file.rs"]
pub mod file;

use std::path::Path;

use candle_core::Device;
use serde_json::Value;
use zoo_deepsif::{Config, DataSettings, DeepSifTask, ImageOptions};
use zoo_layers::Params;
use zoo_training::{Predict, Recipe, Request, Task};

thread_local! {
    static FITTED: Value = open().fitted();
}

fn settings() -> (Config, DataSettings) {
    let mut data = DataSettings::default();
    data.simulation.steps = 50;
    (Config { sensors: 10, ..Config::tiny() }, data)
}

fn open() -> DeepSifTask {
    let (config, data) = settings();
    DeepSifTask::open(&config, &data, 1, None, &Device::Cpu).expect("simulated data")
}

/// Images the file at `path` with options that go through all of it; what comes of it does not matter.
pub fn image(path: &Path) {
    with(path, ImageOptions { band: "1-40".into(), ..ImageOptions::default() });
    with(path, ImageOptions { event: "spike".into(), ..ImageOptions::default() });
}

/// Images the average around the events of a file.
pub fn around(path: &Path, events: &Path) {
    with(path, ImageOptions { events: events.display().to_string(), rate: 500., ..ImageOptions::default() });
}

fn with(path: &Path, options: ImageOptions) {
    let (config, data) = settings();
    let model = DeepSifTask::build(&config, Params::init(1, &Device::Cpu).builder()).expect("a model");
    let request = Request { input: path, options: ImageOptions { as_trained: true, ..options } };
    let _ = FITTED.with(|fitted| DeepSifTask::predict(model, &config, &data, fitted, &request, &Device::Cpu));
}
