//! `predict`: trained weights on new data.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use zoo_training::config::overlaid;
use zoo_training::{Error, Predict, Prediction, Request};

use crate::arguments::{Checkpoint, DeviceName, Force, ModelName, Precision};
use crate::device::device;
use crate::output::{csv_text, note, print, print_json, worded};
use crate::plot::{check_name, draw_picture};
use crate::settings::{changed_source, has_path};
use crate::weights::{Places, Usable, weights};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) model: ModelName,
    #[command(flatten)]
    pub(crate) checkpoint: Checkpoint,
    /// The data to predict from
    #[arg(long, value_name = "PATH")]
    pub(crate) input: PathBuf,
    /// The table to write (stdout without it); .npz or .mat for a model that predicts arrays
    #[arg(long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// What the model was trained on, where the prediction can use it
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// A picture to draw (.svg or .png)
    #[arg(long, value_name = "PATH")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: Force,
    #[command(flatten)]
    pub(crate) device: DeviceName,
    #[command(flatten)]
    pub(crate) precision: Precision,
    /// Print one JSON document (with --output)
    #[arg(long, requires = "output")]
    pub(crate) json: bool,
}

pub(crate) fn run<T: Predict>(args: &Arguments) -> anyhow::Result<()> {
    let (device, path) = (device(&args.device.device)?, weights(&args.checkpoint.checkpoint)?);
    let mut values = args.model.flags.clone();
    let options = values.take("predict");
    let same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    // What a flag of the model names is an input, too.
    let named: Vec<&Path> = options.values().filter_map(|v| v.as_str()).map(Path::new).collect();
    args.plot.as_deref().map_or(Ok(()), check_name)?;
    if args.plot.is_some() && args.plot == args.output {
        return Err(Error::Usage("--plot and --output: the same name for two files".into()).into());
    }
    for output in args.output.iter().chain(&args.plot) {
        let inputs = [args.input.as_path(), &path].into_iter().chain(named.iter().copied());
        if inputs.into_iter().any(|input| same(output, input)) {
            return Err(
                Error::Usage(format!("{} is an input: choose another name for the result", output.display())).into()
            );
        }
    }
    args.force.check(args.output.iter().chain(&args.plot).map(PathBuf::as_path))?;
    let places = Places { checkpoint: &args.checkpoint.checkpoint, values: &values, set: &[] };
    let (Usable { model, config, fitted, .. }, _) = Usable::<T>::read(&places, &device)?;
    // Without it nothing is looked for: what the weights were trained on may have moved.
    if args.data.is_some() || has_path::<T>(&config)? {
        values.set_path("data.path", args.data.as_deref().unwrap_or(Path::new("")))?;
    }
    let source = changed_source::<T>(&config, &[], values)?;
    let request = Request { input: &args.input, options: overlaid::<T::Options>(options, "predict")? };
    let Prediction { header, rows, summary, remarks, arrays, picture } =
        args.precision.run(|| T::predict(&model, &config.model, &source, &fitted, &request, &device))?;
    let table = csv_text(&header, &rows)?;
    if let Some(output) = args.output.as_ref().filter(|o| holds_arrays(o) && arrays.is_empty()) {
        return Err(Error::Usage(format!("--output {}: {} predicts a table (.csv)", output.display(), T::NAME)).into());
    }
    match &args.output {
        Some(output) if holds_arrays(output) => {
            match output.extension().is_some_and(|e| e == "mat") {
                true => zoo_checkpoint::matlab::write(output, &arrays)?,
                false => zoo_checkpoint::write_npz(output, &arrays)?,
            }
            if !args.json {
                print(&table);
            }
        }
        Some(output) => args.force.write(output, table.as_bytes())?,
        None => print(&table),
    }
    if let Some(plot) = &args.plot {
        draw_picture(plot, &picture, args.force)?;
    }
    let remarks: Vec<String> = remarks.iter().map(|r| worded(r)).collect();
    remarks.iter().for_each(|r| note(r));
    if let (true, Some(output)) = (args.json, &args.output) {
        let mut document = json!({
            "model": T::NAME, "checkpoint": path.display().to_string(), "input": args.input.display().to_string(),
            "output": output.display().to_string(), "rows": rows.len(), "remarks": remarks,
        });
        if let Value::Object(document) = &mut document {
            document.extend(summary);
        }
        print_json(&document);
    }
    Ok(())
}

/// Whether a name is that of a file of arrays.
fn holds_arrays(output: &Path) -> bool {
    output.extension().is_some_and(|e| e == "npz" || e == "mat")
}
