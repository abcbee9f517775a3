//! `convert --model`: between a model's own checkpoints and those of other programs.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::Device;
use serde_json::{Map, Value, json};
use zoo_checkpoint::{Description, Plan, Rules};
use zoo_training::config::{ConfigOf, migrate};
use zoo_training::{Error, Foreign, Import, Layout, Merged, without_folders};

use super::convert::Arguments;
use crate::arguments::Force;
use crate::fetch::{self, text_of};
use crate::output::{grouped, print, print_json, remark, warn};
use crate::weights::{BASE, Places, base_of, elsewhere, mismatches, weights};

/// What compile, DDP and training scripts put before the names of a model.
const WRAPPERS: &str = r"rename? (?:(?:state_dict|model_state_dict|model|module|_orig_mod)\.)+(.*) -> $1";
/// Where an exported file keeps what only we know.
const OURS: &str = "zoo";

/// A model's configuration and what was fitted, as its files have them.
struct Described {
    config: Value,
    fitted: Value,
}

pub(crate) fn run<T: Import>(
    plan: &mut Plan,
    args: &Arguments,
    maps: &[Rules],
) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let known = || T::LAYOUTS.iter().map(|l| l.name).collect::<Vec<_>>().join(" and ");
    let to = match &args.to {
        None => None,
        Some(name) => match T::LAYOUTS.iter().find(|l| l.name == name) {
            Some(layout) => Some(layout),
            None => return Err(Error::Usage(format!("--to {name}: {} has the layouts {}", T::NAME, known())).into()),
        },
    };
    let ours = plan.metadata.get("model").and_then(Value::as_str) == Some(T::NAME);
    if let (true, Some(base)) = (ours, &args.base) {
        let base = base.display();
        return Err(Error::Usage(format!("--base {base}: for weights of ours it is of use with --merge alone")).into());
    }
    if ours {
        maps.iter().try_for_each(|map| plan.apply(map))?;
    }
    let described = match ours {
        true => described::<T>(plan, &args.input)?,
        false => import::<T>(plan, args, maps)?,
    };
    if args.base.is_some() && elsewhere::<T>(&configuration::<T>(&described.config, &args.input)?)?.is_empty() {
        return Err(
            Error::Usage("--base: the checkpoint is a whole model, which stands over no other weights".into()).into()
        );
    }
    match to {
        None => {
            let description = Description { model: T::NAME.into(), config: described.config, fitted: described.fitted };
            plan.metadata.extend(description.metadata().into_iter().map(|(k, v)| (k, v.into())));
            Ok(vec![])
        }
        Some(layout) => export::<T>(plan, layout, described, &args.output, args.force),
    }
}

/// Writes the whole model that weights and what they stand over make.
pub(crate) fn merge<T: Import>(args: &Arguments) -> anyhow::Result<()> {
    let (path, shown) = (weights(&args.input)?, args.output.display());
    if args.output.extension().is_none_or(|e| e != "safetensors") {
        return Err(Error::Usage(format!("{shown}: --merge writes safetensors, which convert to other formats")).into());
    }
    let same =
        |input: &Path| args.output.canonicalize().is_ok_and(|to| input.canonicalize().is_ok_and(|from| from == to));
    if [Some(&path), args.base.as_ref()].into_iter().flatten().any(|input| same(input)) {
        return Err(
            Error::Usage(format!("{shown}: it would be written over what it is read from: name another file")).into()
        );
    }
    args.force.check([args.output.as_path()])?;
    let values = base_of(args.base.as_deref())?;
    let file = zoo_checkpoint::read(&path, &Device::Cpu)?;
    let described = Description::parse(&file.metadata, T::NAME, &path)?;
    let config = configuration::<T>(&described.config, &path)?;
    let source = Places { checkpoint: &args.input, values: &values, set: &args.set }.data::<T>()?;
    let Some(merged) = T::merged(&config.model, &source, &described.fitted, &path, file.tensors)? else {
        return Err(Error::Usage(format!("{}: whole weights, which stand over no others", path.display())).into());
    };
    let Merged { architecture, fitted, tensors, error, remarks } = merged;
    let mut config = serde_json::to_value(ConfigOf::<T> { model: architecture, ..config })?;
    if let Some(base) = config.pointer_mut("/data/base") {
        *base = "".into();
    }
    let description = Description { model: T::NAME.into(), config, fitted };
    zoo_checkpoint::write(&args.output, &tensors, &description.metadata())?;
    remarks.iter().for_each(warn);
    if args.json.json {
        print_json(&json!({
            "input": path, "output": args.output, "format": "safetensors", "tensors": tensors.len(), "relative_error": error,
            "remarks": remarks,
        }));
    } else {
        let n = grouped(tensors.len());
        print(&format!(
            "{shown}: {n} tensors; within {error:.1e} of the largest element of each matrix of what f64 gives\n"
        ));
    }
    Ok(())
}

fn described<T: Import>(plan: &Plan, path: &Path) -> anyhow::Result<Described> {
    let texts = plan.metadata.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
    let Description { config, fitted, .. } = Description::parse(&texts, T::NAME, path)?;
    Ok(Described { config, fitted })
}

fn rules(text: &str) -> anyhow::Result<Rules> {
    text.parse().map_err(anyhow::Error::msg)
}

/// From another program's layout to the model's.
fn import<T: Import>(plan: &mut Plan, args: &Arguments, maps: &[Rules]) -> anyhow::Result<Described> {
    let input = args.input.display();
    // Rules may know names as the file has them, or as messages do, without what was wrapped around the model.
    let mut later = vec![];
    for map in maps {
        let mut changed = plan.clone();
        match changed.apply(map) {
            Ok(()) => *plan = changed,
            Err(_) => later.push(map),
        }
    }
    plan.apply(&rules(WRAPPERS)?)?;
    if let Some(prefix) = prefix::<T>(plan)? {
        remark(format!("{input}: its names are read without {prefix:?}"));
        let unwrapped = rules(&format!(r"rename {}(.*) -> $1", Rules::literal(&prefix)))?;
        plan.apply(&unwrapped)?;
    }
    later.into_iter().try_for_each(|map| plan.apply(map))?;
    let tensors: Vec<(&str, &[usize])> = plan.outputs.iter().map(|o| (o.name.as_str(), &o.shape[..])).collect();
    let Some(layout) = T::recognize(&tensors) else {
        let known: Vec<&str> = T::LAYOUTS.iter().map(|l| l.name).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        let reason = format!(
            "{input}: neither weights of {} nor of a layout that converts to it ({known}): name its tensors by --map",
            T::NAME
        );
        return Err(Error::Data(reason).into());
    };
    remark(format!("{input}: the layout is {}'s", layout.name));
    let mut entries = plan.metadata.clone();
    plan.apply(&rules(layout.import)?)?;
    let folder = if args.input.is_dir() { &args.input } else { args.input.parent().unwrap_or(Path::new("")) };
    if !layout.sidecar.is_empty() {
        let beside = folder.join(layout.sidecar);
        if beside.is_file() {
            let text = text_of(&beside, "the configuration of a checkpoint")?;
            let said: Map<String, Value> =
                serde_json::from_str(&text).with_context(|| format!("{}: no JSON object", beside.display()))?;
            entries.extend(said);
        }
    }
    let described = match ours_within(&entries) {
        Some(described) => described,
        None => {
            let tensors: Vec<(&str, &[usize])> = plan.outputs.iter().map(|o| (o.name.as_str(), &o.shape[..])).collect();
            let data = fetch::found::<T>(args.data.as_deref())?;
            let doubts = RefCell::default();
            let base = args.base.as_deref().map(weights).transpose()?;
            let base = base.map(|base| format!("{BASE}={}", base.display()));
            let settings: Vec<String> = args.set.iter().cloned().chain(base).collect();
            let foreign = Foreign {
                layout: layout.name,
                tensors: &tensors,
                entries: &entries,
                path: &args.input,
                folder,
                data: data.as_deref(),
                settings: &settings,
                doubts: &doubts,
            };
            let (model, data, fitted) = T::adopt(&foreign)?;
            doubts.borrow().iter().for_each(|doubt| warn(format!("{input}: {doubt}")));
            let mut config = serde_json::to_value(foreign.configured::<T>(model, data)?)?;
            without_folders(&mut config);
            Described { config, fitted }
        }
    };
    let config = configuration::<T>(&described.config, &args.input)?;
    plan.apply(&rules(&T::reorder(layout, &config.model, false))?)?;
    fits::<T>(plan, &config)?;
    // What the other program wrote beside the tensors is kept as it was.
    let foreign = std::mem::take(&mut plan.metadata);
    // A tokenizer was taken up as what is fitted.
    let is_known = |key: &str| key == OURS || key == "format" || key.starts_with("tokenizer.");
    let kept: Map<String, Value> = foreign.into_iter().filter(|(key, _)| !is_known(key)).collect();
    if !kept.is_empty() {
        plan.metadata.insert(format!("imported_{}", layout.name), Value::Object(kept).to_string().into());
    }
    Ok(described)
}

/// What all names of the model begin with that its layout does not know, such as the name of an attribute of one's own.
fn prefix<T: Import>(plan: &Plan) -> anyhow::Result<Option<String>> {
    const DEEPEST: usize = 4;
    const MOST: usize = 64;
    let mut tried = std::collections::BTreeSet::new();
    for output in &plan.outputs {
        let dots = output.name.match_indices('.').take(DEEPEST).map(|(at, _)| at + 1);
        for end in std::iter::once(0).chain(dots) {
            let prefix = &output.name[..end];
            if tried.len() == MOST || !tried.insert(prefix.to_string()) {
                continue;
            }
            let inner: Vec<(&str, &[usize])> =
                plan.outputs.iter().filter_map(|o| Some((o.name.strip_prefix(prefix)?, &o.shape[..]))).collect();
            let Some(layout) = T::recognize(&inner) else { continue };
            let mut changed = plan.clone();
            let unwrapped = rules(&format!(r"rename? {}(.*) -> $1", Rules::literal(prefix)))?;
            if changed.apply(&unwrapped).is_ok() && changed.apply(&rules(layout.import)?).is_ok() {
                return Ok(Some(prefix.to_string()).filter(|prefix| !prefix.is_empty()));
            }
        }
    }
    Ok(None)
}

/// What we put into a file that we exported.
fn ours_within(entries: &Map<String, Value>) -> Option<Described> {
    let ours = entries.get(OURS)?;
    let ours = match ours.as_str() {
        Some(text) => serde_json::from_str(text).ok()?,
        None => ours.clone(),
    };
    Some(Described { config: ours.get("config")?.clone(), fitted: ours.get("fitted")?.clone() })
}

fn configuration<T: Import>(config: &Value, path: &Path) -> anyhow::Result<ConfigOf<T>> {
    let config = serde_json::from_value(migrate(config.clone())?);
    config.with_context(|| format!("{}: its configuration", path.display()))
}

/// Whether the planned tensors are exactly the model's.
fn fits<T: Import>(plan: &Plan, config: &ConfigOf<T>) -> anyhow::Result<()> {
    let present: Vec<(&str, &[usize])> = plan.outputs.iter().map(|o| (o.name.as_str(), &o.shape[..])).collect();
    let problems: Vec<String> = mismatches::<T>(config, &present, &elsewhere::<T>(config)?)?
        .into_iter()
        .map(|p| if p.starts_with("unexpected ") { format!("{p} (--map 'drop …' leaves it out)") } else { p })
        .collect();
    let shown: Vec<&str> = problems.iter().take(5).map(String::as_str).collect();
    match problems.len() {
        0 => Ok(()),
        n => Err(Error::Data(format!(
            "{}: its tensors do not make a {}: {}{}",
            plan.path().display(),
            T::NAME,
            shown.join("; "),
            if n > 5 { format!("; and {} more", n - 5) } else { String::new() }
        ))
        .into()),
    }
}

/// From the model's layout to another program's.
fn export<T: Import>(
    plan: &mut Plan,
    layout: &Layout,
    ours: Described,
    output: &Path,
    force: Force,
) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let config = configuration::<T>(&ours.config, plan.path())?;
    let mut entries = T::entries(layout, &config.model, &ours.fitted)?;
    plan.apply(&rules(&T::reorder(layout, &config.model, true))?)?;
    plan.apply(&rules(layout.export)?)?;
    if layout.keeps_ours {
        entries.insert(OURS.into(), serde_json::json!({ "config": ours.config, "fitted": ours.fitted }));
    }
    if !layout.entry.is_empty() {
        plan.entry = Some(layout.entry.into());
    }
    if layout.sidecar.is_empty() {
        plan.metadata = entries;
        return Ok(vec![]);
    }
    plan.metadata = Map::new();
    let mut files = vec![(layout.sidecar, format!("{:#}\n", Value::Object(entries)))];
    files.extend(T::beside(layout, &ours.fitted)?);
    let files: Vec<(PathBuf, String)> =
        files.into_iter().map(|(name, text)| (output.with_file_name(name), text)).collect();
    if let Some((path, _)) = files.iter().find(|(path, _)| path == output) {
        return Err(Error::Usage(format!("{}: that is where another file of the model goes", path.display())).into());
    }
    force.check(files.iter().map(|(path, _)| path.as_path()))?;
    Ok(files)
}
