//! `replay`: a run computed again up to a step. `bisect`: where two runs part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use candle_core::Tensor;
use clap::Args;
use regex::Regex;
use serde_json::{Map, Value, json};
use zoo_training::config::ConfigOf;
use zoo_training::{Difference, Error, Event, History, Recipe, RunFiles, Trainer};

use crate::arguments::{Force, Json, Values};
use crate::device::device;
use crate::health::{name_of, tables};
use crate::output::{note, print, print_json, remark, table, warn};
use crate::settings::{run_config, run_tables};
use crate::signals::{STOPPED, stop_flag};

#[derive(Args)]
pub(crate) struct Replay {
    /// A run directory
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// The step to go to; 0 for the initial weights
    #[arg(long, value_name = "N")]
    step: u64,
    /// Statistics of the weights, gradients and activations in whose names the expression is found
    #[arg(long, value_name = "REGEX")]
    show: Option<String>,
    /// Write the weights of that step
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    json: Json,
}

#[derive(Args)]
pub(crate) struct Bisect {
    /// A run directory
    #[arg(value_name = "RUN_A")]
    pub(crate) a: PathBuf,
    /// Another run of the same model
    #[arg(value_name = "RUN_B")]
    pub(crate) b: PathBuf,
    #[command(flatten)]
    json: Json,
}

/// The configuration of a run, its data opened, and its curves.
struct Opened<T: Recipe> {
    config: ConfigOf<T>,
    task: T,
    history: History,
}

impl<T: Recipe> Opened<T> {
    fn new(run: &Path) -> anyhow::Result<Self> {
        let device = device("cpu")?;
        let mut config = run_config::<T>(run, &[], Values::default())?;
        T::settle(&mut config)?;
        let task = T::open(&config.model, &config.data, config.train.seed, None, &device)?;
        if RunFiles::at(run).data().is_some_and(|data| data != task.fingerprint()) {
            warn(format!("{}: the data are not those that the run was trained on", run.display()));
        }
        Ok(Self { config, task, history: History::read(run)? })
    }
}

/// What the record has of a step: loss and gradient norm.
fn recorded(history: &History, step: u64) -> Option<[f64; 2]> {
    let of = |name: &str| {
        let curve = history.curve(name);
        curve.binary_search_by_key(&step, |p| p.0).ok().map(|i| curve[i].1)
    };
    Some([of("loss")?, of("grad_norm")?])
}

/// Compares what is computed with the record of a run.
struct Record<'a> {
    history: &'a History,
    compared: u64,
    /// The loss that was computed last.
    loss: Option<f64>,
    /// The first step whose loss or gradient norm is another than on record: on record, computed.
    differs: Option<(u64, f64, f64)>,
}

impl<'a> Record<'a> {
    fn of(history: &'a History) -> Self {
        Self { history, compared: 0, loss: None, differs: None }
    }

    fn look(&mut self, event: &Event) {
        let &Event::Step { step, loss, grad_norm, .. } = event else { return };
        self.loss = Some(loss);
        let Some([was, norm]) = recorded(self.history, step) else { return };
        self.compared += 1;
        let pair = if was != loss { Some((was, loss)) } else { (norm != grad_norm).then_some((norm, grad_norm)) };
        if let (None, Some((was, now))) = (self.differs, pair) {
            self.differs = Some((step, was, now));
        }
    }
}

pub(crate) fn replay<T: Recipe>(args: &Replay) -> anyhow::Result<ExitCode> {
    let Replay { run, step, show, save, force, json } = args;
    let pattern = |text: &String| {
        let why = |e: regex::Error| e.to_string().lines().last().unwrap_or_default().to_string();
        Regex::new(text).map_err(|e| Error::Usage(format!("--show {text}: {}", why(e))))
    };
    let show = show.as_ref().map(pattern).transpose()?;
    if let Some(save) = save {
        if save.extension().is_none_or(|e| e != "safetensors") {
            return Err(
                Error::Usage(format!("--save {}: expected a name that ends in .safetensors", save.display())).into()
            );
        }
        force.check([save.as_path()])?;
        let folder = |path: &Path| std::path::absolute(path).and_then(|p| p.parent().unwrap_or(&p).canonicalize());
        if let (Ok(folder), Ok(run)) = (folder(save), run.canonicalize())
            && folder.starts_with(run)
        {
            return Err(Error::Usage(format!(
                "--save {}: it is in the run itself: name another place",
                save.display()
            ))
            .into());
        }
    }
    let opened = Opened::<T>::new(run)?;
    // The step itself is computed: what it did is to be seen.
    let from = step.saturating_sub(1);
    let mut trainer = Trainer::fork(&opened.task, &opened.config, &device("cpu")?, run, from)?;
    let names: Vec<String> = trainer.params().tensors().into_iter().map(|(name, _)| name).collect();
    if let Some(show) = show.as_ref().filter(|show| !names.iter().any(|name| show.is_match(name))) {
        remark(format!("--show {show}: found in no parameter ({})", names.join(", ")));
    }
    let (first, total) = (trainer.step(), trainer.total_steps());
    if *step > total {
        return Err(Error::Usage(format!("--step {step}: {} has {total} steps", run.display())).into());
    }
    let history = &opened.history;
    let seconds = history.seconds_a_step();
    let takes = seconds.map_or(String::new(), |s| format!(", which takes about {:.0} s", s * (step - first) as f64));
    note(&format!("from the checkpoint of step {first}: {} steps to compute{takes}", step - first));
    let (stop, mut record) = (stop_flag()?, Record::of(history));
    let check = {
        let mut look = |event: &Event| record.look(event);
        match trainer.replay(*step, &mut look, &|| stop.load(Ordering::Relaxed)) {
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(ExitCode::from(STOPPED)),
            check => check?,
        }
    };
    if let Some((at, was, now)) = record.differs {
        warn(format!(
            "at step {at} the record has {was}, and {now} was computed: the run had other settings, data, weights or another build then"
        ));
    }
    if let Some(save) = save {
        trainer.write_weights(save)?;
    }
    let of = |name: &str| show.as_ref().is_some_and(|show| show.is_match(name));
    let mut shown = check.clone();
    shown.parameters.retain(|p| of(&p.name));
    shown.probes.retain(|p| of(&p.name));
    let weights: Vec<(String, Tensor)> = trainer.params().tensors().into_iter().filter(|(name, _)| of(name)).collect();
    let statistics = weights.iter().map(|(_, t)| statistics(t)).collect::<candle_core::Result<Vec<_>>>()?;
    let equal = record.differs.is_none();
    if json.json {
        let weights: Map<String, Value> = weights
            .iter()
            .zip(&statistics)
            .map(|((name, t), [mean, std, min, max])| {
                (name.clone(), json!({ "shape": t.dims(), "mean": mean, "std": std, "min": min, "max": max }))
            })
            .collect();
        print_json(&json!({
            "run": run, "step": step, "from": first, "compared_with_record": record.compared,
            "as_on_record": (record.compared > 0).then_some(equal), "loss": record.loss,
            "gradient_norm": check.norm, "weights": weights, "parameters": shown.parameters, "probes": shown.probes, "saved": save,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    let compared = match record.compared {
        0 => "none of these steps is on record".to_string(),
        n if equal => format!("losses and gradient norms of the {n} steps on record are the same, to the bit"),
        _ => "losses or gradient norms are not those on record".to_string(),
    };
    print(&format!("{} at step {step}, computed from step {first}: {compared}\n", name_of(run)));
    if show.is_some() {
        let mut rows = vec![["weights", "shape", "mean", "std", "min", "max"].map(String::from).to_vec()];
        for ((name, t), values) in weights.iter().zip(&statistics) {
            let shape = t.dims().iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
            rows.push([name.clone(), shape].into_iter().chain(values.map(|v| format!("{v:.4e}"))).collect());
        }
        print(&format!("\n{}\n{}", table(&rows), tables(&shown)));
    }
    if let Some(save) = save {
        let what = if equal {
            format!("the weights of step {step}")
        } else {
            "what was computed, not the run's weights".into()
        };
        print(&format!("{}: {what}\n", save.display()));
    }
    Ok(ExitCode::from(u8::from(!equal)))
}

/// Mean, standard deviation, least and greatest value.
fn statistics(t: &Tensor) -> candle_core::Result<[f64; 4]> {
    let values = values(t)?;
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let ends = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(f64::from(*v)), b.max(f64::from(*v))));
    Ok([mean, variance.sqrt(), ends.0, ends.1])
}

fn values(t: &Tensor) -> candle_core::Result<Vec<f32>> {
    t.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()
}

/// A tensor of two runs that is not the same.
struct Parted {
    name: String,
    elements: usize,
    of: usize,
    largest: f64,
    /// Why their elements cannot be compared, if so.
    unlike: Option<String>,
}

/// Tensors that differ in a bit, or that one of the two lacks.
fn parted(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> anyhow::Result<Vec<Parted>> {
    let mut found = vec![];
    for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
        let (one, other) = (a.get(name), b.get(name));
        let (Some(x), Some(y)) = (one, other.filter(|other| one.is_some_and(|one| one.dims() == other.dims()))) else {
            let elements = one.or(other).map_or(0, Tensor::elem_count);
            let unlike = Some(match (one, other) {
                (Some(one), Some(other)) => format!("{:?} and {:?}", one.dims(), other.dims()),
                (Some(_), None) => "in the first alone".into(),
                _ => "in the second alone".into(),
            });
            found.push(Parted { name: name.clone(), elements, of: elements, largest: f64::NAN, unlike });
            continue;
        };
        let (x, y) = (values(x)?, values(y)?);
        let pairs = || x.iter().zip(&y).filter(|(a, b)| a.to_bits() != b.to_bits());
        let elements = pairs().count();
        if elements > 0 {
            let largest = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0., f64::max);
            found.push(Parted { name: name.clone(), elements, of: x.len(), largest, unlike: None });
        }
    }
    Ok(found)
}

/// What was found out about two runs.
#[derive(Default)]
struct Findings {
    /// Settings that are not the same.
    settings: Vec<Difference>,
    /// The last step up to which they are known to be the same, and the first at which they are not.
    same: u64,
    first: Option<u64>,
    /// What differs there.
    tensors: Vec<Parted>,
    /// In words.
    because: String,
}

pub(crate) fn bisect<T: Recipe>(args: &Bisect) -> anyhow::Result<ExitCode> {
    let Bisect { a, b, json } = args;
    let stop = stop_flag()?;
    let (one, other) = (Opened::<T>::new(a)?, Opened::<T>::new(b)?);
    let found = find(args, &one, &other, &|| stop.load(Ordering::Relaxed))?;
    let Some(found) = found else { return Ok(ExitCode::from(STOPPED)) };
    let Findings { settings, same, first, tensors, because } = &found;
    if json.json {
        let tensors: Vec<Value> = tensors
            .iter()
            .map(|p| json!({ "name": p.name, "differ": p.elements, "elements": p.of, "largest": p.largest, "unlike": p.unlike }))
            .collect();
        let settings: Vec<[&String; 3]> = settings.iter().map(|d| [&d.key, &d.was, &d.now]).collect();
        print_json(&json!({
            "runs": [a, b], "settings": settings, "same_through": same, "first_difference": first, "tensors": tensors,
            "because": because,
        }));
    } else {
        for Difference { key, was, now } in settings {
            print(&format!("{key}: {was} in {}, {now} in {}\n", name_of(a), name_of(b)));
        }
        print(&format!("{because}\n"));
        if !tensors.is_empty() {
            let mut rows =
                vec![["tensor", "elements that differ", "of", "largest difference"].map(String::from).to_vec()];
            rows.extend(tensors.iter().map(|p| {
                let largest = p.unlike.clone().unwrap_or_else(|| format!("{:.2e}", p.largest));
                vec![p.name.clone(), p.elements.to_string(), p.of.to_string(), largest]
            }));
            print(&format!("\n{}", table(&rows)));
        }
    }
    Ok(ExitCode::from(u8::from(first.is_some())))
}

/// Finds where two runs part; nothing if it was stopped.
fn find<T: Recipe>(
    args: &Bisect,
    one: &Opened<T>,
    other: &Opened<T>,
    stopped: &dyn Fn() -> bool,
) -> anyhow::Result<Option<Findings>> {
    let (a, b) = (&args.a, &args.b);
    let [of_one, of_other] = [serde_json::to_value(run_tables(a)?)?, serde_json::to_value(run_tables(b)?)?];
    let mut found = Findings { settings: Difference::between(&of_one, &of_other), ..Findings::default() };
    // What is on record of both.
    let steps = |h: &History| h.curve("loss").iter().map(|p| p.0).collect::<BTreeSet<u64>>();
    let common: Vec<u64> = steps(&one.history).intersection(&steps(&other.history)).copied().collect();
    let differs = |step: &&u64| recorded(&one.history, **step) != recorded(&other.history, **step);
    let lines = common.iter().find(differs).copied();
    found.same = common.iter().take_while(|step| lines.is_none_or(|l| **step < l)).last().copied().unwrap_or(0);
    // Of the checkpoints of both, the first that differs.
    let files = [a, b].map(|run| RunFiles::at(run));
    let [of_a, of_b] = [files[0].checkpoint_steps()?, files[1].checkpoint_steps()?];
    let both: Vec<u64> = of_a.iter().filter(|step| of_b.contains(step)).copied().collect();
    if common.is_empty() && both.is_empty() {
        let reason = format!("{} and {} have no step on record in common, and no checkpoint", a.display(), b.display());
        return Err(Error::Run(reason).into());
    }
    let (mut last_same, mut changed) = (None, None);
    for step in both {
        let ([model_a, state_a], [model_b, state_b]) = (files[0].checkpoint(step)?, files[1].checkpoint(step)?);
        let mut tensors = parted(&model_a, &model_b)?;
        tensors.extend(
            parted(&state_a, &state_b)?.into_iter().map(|p| Parted { name: format!("optimizer: {}", p.name), ..p }),
        );
        if !tensors.is_empty() {
            changed = Some((step, tensors));
            break;
        }
        last_same = Some(step);
    }
    let on_record = lines.into_iter().chain(changed.as_ref().map(|c| c.0)).min();
    // Where the record tells nothing, computing does: other settings may show later, and a record may be short.
    let ends = [&one.history, &other.history].map(|h| h.curve("loss").last().map_or(0, |p| p.0));
    let known = found.settings.is_empty() && last_same.is_some();
    let Some(end) = on_record.or((!known).then_some(ends[0].min(ends[1]))) else {
        found.because = format!(
            "no difference: losses and gradient norms are the same at the {} steps that both have on record, the last {}{}",
            common.len(),
            found.same,
            last_same.map_or(String::new(), |step| format!(", and so are their checkpoints up to step {step}"))
        );
        return Ok(Some(found));
    };
    // Both are computed again, from where they were the same.
    let from = last_same.filter(|step| *step < end).unwrap_or(0);
    let device = device("cpu")?;
    let mut trainers = [
        Trainer::fork(&one.task, &one.config, &device, a, from)?,
        Trainer::fork(&other.task, &other.config, &device, b, from)?,
    ];
    note(&format!("computing both from step {from} to at most {end}"));
    let mut records = [Record::of(&one.history), Record::of(&other.history)];
    for step in from..=end {
        if step > from {
            for (trainer, record) in trainers.iter_mut().zip(&mut records) {
                let mut look = |event: &Event| record.look(event);
                trainer.train_to(step, &mut look, stopped)?;
            }
        }
        if stopped() {
            return Ok(None);
        }
        // In the order of the model, which is that of what depends on what.
        let order: Vec<String> = trainers[0].params().tensors().into_iter().map(|(name, _)| name).collect();
        let [first, second] = [&trainers[0], &trainers[1]].map(|t| t.params().tensors().into_iter().collect());
        let mut tensors = parted(&first, &second)?;
        tensors.sort_by_key(|p| order.iter().position(|name| *name == p.name));
        if !tensors.is_empty() {
            let (what, n) = (&tensors[0].name, tensors.len());
            found.because = match step {
                0 => format!("they differ from the beginning: {what} is the first of {n} tensors"),
                _ => format!(
                    "they are the same through step {}; step {step} parts them: {what} is the first of {n} tensors",
                    step - 1
                ),
            };
            (found.same, found.first, found.tensors) = (step.saturating_sub(1), Some(step), tensors);
            return Ok(Some(found));
        }
    }
    if on_record.is_none() {
        found.same = end;
        found.because = format!("no difference: both compute the same through step {end}, the last that both have");
        return Ok(Some(found));
    }
    // Computing does not part them: what is on record of one was not computed from what came before.
    let departs: Vec<String> = [a, b]
        .iter()
        .zip(&records)
        .filter_map(|(run, record)| {
            let (step, was, now) = record.differs?;
            Some(format!("{} has {was} on record at step {step}, where {now} is computed", name_of(run)))
        })
        .collect();
    let first = records.iter().filter_map(|r| r.differs.map(|d| d.0)).min();
    let outside = "its weights or its state were changed from outside, or another build or machine computed it";
    match changed.filter(|(step, _)| first.is_none_or(|f| *step < f)) {
        Some((step, tensors)) => {
            found.because = format!(
                "both compute the same through step {step}, but their checkpoints of step {step} are not the same: {outside}; {} is the first of {} tensors",
                tensors[0].name,
                tensors.len()
            );
            (found.same, found.first, found.tensors) = (found.same.min(step.saturating_sub(1)), Some(step), tensors);
        }
        None => {
            let departs = if departs.is_empty() { String::new() } else { format!(" ({})", departs.join("; ")) };
            found.because =
                format!("both compute the same through step {end}{departs}: {outside}, after step {}", found.same);
            found.first = first.or(Some(end));
        }
    }
    Ok(Some(found))
}
