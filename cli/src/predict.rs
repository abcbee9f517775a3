//! `zoo predict`.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use zoo_training::{Error, Prediction, Request, Task};

use crate::args::PredictArgs;
use crate::eval::Loaded;
use crate::output::{note, print, print_json};
use crate::plot::{check_name, draw_picture};
use crate::registry::{changed_source, device, quoted, weights};

pub(crate) fn run<T: Task>(args: &PredictArgs) -> anyhow::Result<()> {
    let (device, path) = (device(&args.device)?, weights(&args.checkpoint));
    if !(args.interval >= 1. && args.interval < 100.) {
        return Err(Error::Usage(format!(
            "--interval {}: expected a percentage, from 1 to less than 100",
            args.interval
        ))
        .into());
    }
    if !(1..=10_000).contains(&args.horizon) {
        return Err(Error::Usage(format!("--horizon {}: expected 1 to 10000", args.horizon)).into());
    }
    args.plot.as_deref().map_or(Ok(()), check_name)?;
    if args.plot.is_some() && args.plot == args.output {
        return Err(Error::Usage("--plot and --output: the same name for two files".into()).into());
    }
    let same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    for output in args.output.iter().chain(&args.plot) {
        let inputs = [Some(args.input.as_path()), Some(&path), args.truth.as_deref()];
        if inputs.into_iter().flatten().any(|input| same(output, input)) {
            return Err(
                Error::Usage(format!("{} is an input: choose another name for the result", output.display())).into()
            );
        }
    }
    let Loaded { model, config, fitted, .. } = Loaded::<T>::read(&path, &device)?;
    let mut set = args.how.settings();
    // Without it nothing is looked for: what the weights were trained on may have moved.
    set.push(format!("data.path={}", quoted(args.data.as_deref().unwrap_or(Path::new("")))));
    let source = changed_source::<T>(&config, &set)?;
    let truth = args.truth.as_deref();
    let request = Request { input: &args.input, horizon: args.horizon, interval: args.interval / 100., truth };
    let Prediction { header, rows, summary, remarks, arrays, picture } =
        T::predict(model, &config.model, &source, &fitted, &request, &device)?;
    let table = csv_text(&header, &rows)?;
    if let Some(output) = args.output.as_ref().filter(|o| holds_arrays(o) && arrays.is_empty()) {
        return Err(Error::Usage(format!("--output {}: {} predicts a table (.csv)", output.display(), T::NAME)).into());
    }
    if let Some(plot) = &args.plot {
        draw_picture(plot, &picture)?;
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
        Some(output) => {
            zoo_checkpoint::replace(output, |f| f.write_all(table.as_bytes()))?;
        }
        None => print(&table),
    }
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

pub(crate) fn csv_text(header: &[impl AsRef<[u8]>], rows: &[Vec<String>]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record(header)?;
    for row in rows {
        writer.write_record(row)?;
    }
    let bytes = writer.into_inner().context("writing the table")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
