//! The gradient death of the trading transformer's first map: the reproduction beside the document's figures.

use serde_json::{Value, json};
use zoo_training::{Block, Experiment, Figure, Findings, Panel, Result, Setup};

use crate::reproduction::{ARMS, Course, Reading, Settings, read, run as run_arm};

/// The first arms, which also learn to read.
const READERS: usize = 3;

/// The experiment.
pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "gradient-death",
    summary: "gradients of the trading transformer's first map, without a norm before it and with the document's cures",
    steps: "steps of each arm (2000)",
    range: 25..=u64::MAX,
    data: "",
    figure: true,
    run,
};

fn run(setup: &Setup) -> Result<Option<Findings>> {
    let settings = Settings {
        steps: setup.steps.unwrap_or(Settings::default().steps),
        seed: setup.seed.unwrap_or(Settings::default().seed),
        reading: setup.steps.unwrap_or(u64::MAX).min(Settings::default().reading),
        ..Settings::default()
    };
    let mut courses = vec![];
    for arm in ARMS {
        let started = std::time::Instant::now();
        let course = run_arm(arm, settings, &mut |_| (setup.going)())?;
        if !(setup.going)() {
            return Ok(None);
        }
        let seconds = started.elapsed().as_secs_f64();
        (setup.progress)(&format!("{}: {} steps in {seconds:.0} s", arm.name, settings.steps));
        courses.push(course);
    }
    let mut reading = vec![];
    for arm in ARMS.into_iter().take(READERS) {
        reading.push(read(arm, settings, &mut || (setup.going)())?);
        if !(setup.going)() {
            return Ok(None);
        }
    }
    Ok(Some(Findings {
        json: as_json(&courses, &reading, settings),
        text: text(&courses, &reading, settings),
        figure: Some(Figure::Panels(panels(&courses))),
    }))
}

fn find<'a>(courses: &'a [Course], name: &str) -> &'a Course {
    // All arms are run, in the order of ARMS.
    courses.iter().find(|c| c.arm.name == name).unwrap_or(&courses[0])
}

fn ends(course: &Course) -> Value {
    let end = |f: &dyn Fn(&Reading) -> f64| course.end(f);
    json!({
        "gradient_zeros": end(&|l| l.gradient_zeros),
        "saturation": end(&|l| l.saturation),
        "gradient_norm": end(&|l| l.gradient_norm),
        "pooling": { "max": end(&|l| l.pooling.max), "min": end(&|l| l.pooling.min), "std": end(&|l| l.pooling.std) },
    })
}

fn as_json(courses: &[Course], reading: &[[f64; 2]], settings: Settings) -> Value {
    let arms: Vec<Value> = courses
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let mut value = ends(c);
            let [loss, accuracy, brier] = c.valid;
            value["name"] = c.arm.name.into();
            value["what"] = c.arm.what.into();
            value["zeros_of_zero_inputs"] = c.end(|l| l.zeros_of_zero_inputs).into();
            value["gradient_rank"] = c.end(|l| l.gradient_rank).into();
            value["loss"] = c.end(|l| l.loss).into();
            value["valid"] = json!({ "loss": loss, "accuracy": accuracy, "brier": brier });
            value["input_std"] = json!({ "with_position": c.input_std[0], "without_position": c.input_std[1] });
            value["idle_columns"] = c.idle_columns.into();
            if let Some([with, without]) = reading.get(i) {
                value["reading"] = json!({ "with_position": with, "without_position": without });
            }
            value["looks"] = json!(c.readings);
            value
        })
        .collect();
    json!({
        "conclusions": conclusions(courses, reading),
        "before": ends(find(courses, "none")), "after": ends(find(courses, "layer")), "settings": settings, "arms": arms,
        "document": {
            "before": { "gradient_zeros": [0.66, 0.70], "pooling": { "max": 0.050, "min": 0.050 } },
            "after": {
                "gradient_zeros": [0.0037, 0.0164], "saturation": [0.023, 0.047], "gradient_norm": [3.75, 4.23],
                "pooling": { "max": 0.053, "min": 0.047, "std": 0.002 },
            },
        },
    })
}

fn text(courses: &[Course], reading: &[[f64; 2]], settings: Settings) -> Vec<Block> {
    let Settings { steps, batch, seed, reading: learned, .. } = settings;
    let lines = |text: String| Block::Lines(text);
    vec![
        lines(format!(
            "temporal_projection over {steps} steps of {batch} observations, seed {seed}; means of the last tenth\n"
        )),
        Block::Table(ends_table(courses)),
        lines("standard deviation of what the projection sees, by group of features\n".into()),
        Block::Table(inputs_table(courses)),
        lines(format!(
            "where the last five bars went, which the inputs say, after {learned} steps of learning to tell it\n"
        )),
        Block::Table(reading_table(courses, reading)),
        lines(conclusions(courses, reading).iter().map(|line| format!("- {line}\n")).collect()),
    ]
}

/// What each arm ends with, beside the document's figures.
fn ends_table(courses: &[Course]) -> Vec<Vec<String>> {
    let percent = |v: f64| format!("{:.2}", 100. * v);
    let header = [
        "arm",
        "zeros %",
        "of zero inputs %",
        "saturated %",
        "norm",
        "pooling max",
        "min",
        "rank",
        "loss",
        "valid loss",
        "valid Brier",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for c in courses {
        let mut row = vec![c.arm.name.to_string()];
        row.extend(
            [c.end(|l| l.gradient_zeros), c.end(|l| l.zeros_of_zero_inputs), c.end(|l| l.saturation)].map(percent),
        );
        row.push(format!("{:.3}", c.end(|l| l.gradient_norm)));
        row.extend([c.end(|l| l.pooling.max), c.end(|l| l.pooling.min)].map(|v| format!("{v:.4}")));
        row.push(format!("{:.1}", c.end(|l| l.gradient_rank)));
        row.extend([c.end(|l| l.loss), c.valid[0], c.valid[2]].map(|v| format!("{v:.4}")));
        rows.push(row);
    }
    for (name, zeros, saturated, norm, max, min) in [
        ("document, before", "66-70", "-", "-", "0.050", "0.050"),
        ("document, after", "0.37-1.64", "2.3-4.7", "3.75-4.23", "0.053", "0.047"),
    ] {
        rows.push([name, zeros, "-", saturated, norm, max, min].map(String::from).to_vec());
    }
    rows
}

fn inputs_table(courses: &[Course]) -> Vec<Vec<String>> {
    let header = ["inputs", "market", "indicator", "position", "market", "indicator", "position", "idle columns"];
    let mut rows = vec![["", "with position", "", "", "without", "", "", "that differ"].map(String::from).to_vec()];
    rows.push(header.map(String::from).to_vec());
    let text = |v: &f64| if *v != 0. && *v < 1e-3 { format!("{v:.1e}") } else { format!("{v:.3}") };
    for c in courses.iter().take(READERS) {
        let mut row = vec![c.arm.name.to_string()];
        row.extend(c.input_std.iter().flatten().map(text));
        row.push(format!("{} of 20", c.idle_columns));
        rows.push(row);
    }
    rows
}

fn reading_table(courses: &[Course], reading: &[[f64; 2]]) -> Vec<Vec<String>> {
    let mut rows = vec![["told right, %", "with position", "without"].map(String::from).to_vec()];
    for (c, accuracy) in courses.iter().zip(reading) {
        rows.push(std::iter::once(c.arm.name.to_string()).chain(accuracy.map(|v| format!("{v:.1}"))).collect());
    }
    rows
}

/// What the figures say, where they differ from the document's and why.
fn conclusions(courses: &[Course], reading: &[[f64; 2]]) -> Vec<String> {
    let of = |name: &str, f: &dyn Fn(&Reading) -> f64| find(courses, name).end(f);
    let zeros = |name: &str| 100. * of(name, &|l| l.gradient_zeros);
    let [none, layer] = ["none", "layer"].map(zeros);
    let [silent, healed] = ["silent, none", "silent, layer"].map(zeros);
    let explained = 100. * of("silent, none", &|l| l.zeros_of_zero_inputs);
    let failed: Vec<f64> = courses.iter().skip(READERS).take(4).map(|c| zeros(c.arm.name)).collect();
    let (least, most) = failed.iter().fold((f64::INFINITY, 0f64), |(a, b), v| (a.min(*v), b.max(*v)));
    let saturated = |name: &str| 100. * of(name, &|l| l.saturation);
    let mut lines = vec![
        format!(
            "zeros: {none:.2} % without a norm, not the document's 66 to 70 %: none of these features is constant. With 86 of the \
             129 silent they are {silent:.1} %, and {explained:.1} % of those lie in columns whose inputs were exactly zero. Such a \
             column can have no other gradient: it is no dead neuron"
        ),
        format!(
            "layer norm: {layer:.2} % and, with silent features, {healed:.2} %. It turns zeros into a number that all idle features \
             share, so their columns get gradients, but all the same one ({} of 20 differ)",
            find(courses, "layer").idle_columns
        ),
        format!(
            "the document's other attempts leave zeros where they were: {least:.2} to {most:.2} % (a constant factor on some columns' \
             gradients is undone by Adam, but for the clipping)"
        ),
        format!(
            "saturation: {:.1} % without a norm, {:.2} % with layer norm (the document has 2.3 to 4.7 % after the cure, and nothing \
             from before it)",
            saturated("none"),
            saturated("layer")
        ),
        format!(
            "norms: {:.2} with layer norm; pooling {:.3} to {:.3}: the document's 3.75 to 4.23 and 0.047 to 0.053 are from \
             reinforcement learning, this is cross-entropy on simulated directions, which cannot be forecast: a falling training \
             loss is learning by heart, and the validation loss rises with it",
            of("layer", &|l| l.gradient_norm),
            of("layer", &|l| l.pooling.min),
            of("layer", &|l| l.pooling.max)
        ),
    ];
    let std = |name: &str| find(courses, name).input_std;
    let (layer_std, running_std) = (std("layer"), std("running"));
    lines.push(format!(
        "what the cure costs: a position squeezes the market's features, whose deviation falls from {:.3} to {:.3} behind layer norm, \
         and from {:.3} to {:.3} behind running statistics",
        layer_std[1][0], layer_std[0][0], running_std[1][0], running_std[0][0]
    ));
    if let [_, layer, running] = reading {
        let told = |[with, without]: &[f64; 2]| format!("{with:.1} % with a position and {without:.1} % without");
        let better = if running[0] > layer[0] { "running statistics are" } else { "layer norm is" };
        lines.push(format!(
            "reading its inputs, layer norm tells {} right, running statistics {}: {better} the better cure",
            told(layer),
            told(running)
        ));
    }
    lines
}

fn panels(courses: &[Course]) -> Vec<Panel> {
    let panel = |title, f: &dyn Fn(&Reading) -> f64| {
        let line = |c: &Course| (c.arm.name.into(), c.readings.iter().map(|l| (l.step, f(l))).collect());
        Panel { title, lines: courses.iter().map(line).collect() }
    };
    vec![
        panel("zeros of temporal_projection, %", &|l| 100. * l.gradient_zeros),
        panel("saturated (|x| > 3), %", &|l| 100. * l.saturation),
        panel("gradient norm", &|l| l.gradient_norm),
        panel("training loss", &|l| l.loss),
    ]
}
