//! Manifest, state and record of a run that is resumed; the first byte says which.
#![no_main]

#[path = "file.rs"]
mod file;
#[path = "mini.rs"]
mod mini;

use candle_core::Device;
use mini::Mini;
use zoo_training::{Silent, Trainer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let config = mini::config(1);
    file::folder(|folder| {
        let run = folder.join("run");
        let _ = std::fs::remove_dir_all(&run);
        let mut trainer = Trainer::new(&Mini, &config, &Device::Cpu).expect("a trainer");
        trainer.begin(&run).expect("a run");
        trainer.train(&mut Silent, &|| false).expect("a step");
        drop(trainer);
        let names = ["checkpoints/step-00000001/manifest.json", "checkpoints/step-00000001/state.json", "accepted.json"];
        std::fs::write(run.join(names[usize::from(*first) % 3]), rest).expect("a file");
        let _ = Trainer::resume(&Mini, &config, &Device::Cpu, &run, &[], &mut Silent);
        // Nothing is made outside.
        assert!(std::fs::read_dir(folder).expect("a folder").count() == 1);
    });
});
