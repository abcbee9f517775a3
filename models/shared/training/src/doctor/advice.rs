//! What to change, in the order in which it is worth trying.

use serde_json::Value;

use super::measure::Numbers;
use super::{LEAST_LEAP, Verdict};
use crate::Advice;
use crate::advice::neat;
use crate::health::{FAST, USUAL};

/// How much higher a learning rate is advised at most.
const MOST: f64 = 1e3;

/// The learning rate that the change of the weights in a step asks for, where that is known.
pub(super) fn rate(verdict: Verdict, numbers: &Numbers, config: &Value) -> Option<Advice> {
    let lr = config.pointer("/train/lr").and_then(Value::as_f64)?;
    let (then, what) = match verdict {
        Verdict::RateTooLow => {
            // Weights that do not move at all tell the direction alone.
            let factor = numbers.pace.map_or(10., |pace| (USUAL / pace.max(f64::MIN_POSITIVE)).min(MOST));
            (lr * factor, "a higher learning rate")
        }
        _ => {
            // While it warms up, the rate of a step is lower.
            let leap = numbers.leap.filter(|(leap, _)| *leap > LEAST_LEAP);
            let leap = leap.map(|(leap, then)| then.unwrap_or(lr) * FAST / leap);
            let pace = numbers.pace.filter(|pace| *pace > FAST).map(|pace| lr * FAST / pace);
            (leap.into_iter().chain(pace).reduce(f64::min).unwrap_or(lr / 10.), "a lower learning rate")
        }
    };
    Some(Advice::set("train.lr", neat(then), what))
}

pub(super) fn advice(verdict: Verdict, numbers: &Numbers, config: &Value) -> Vec<Advice> {
    let value = |key: &str| config.pointer(&format!("/{}", key.replace('.', "/")));
    let number = |key: &str| value(key).and_then(Value::as_f64);
    let times = |key: &str, factor: f64, what: &str| {
        let (now, whole) = (number(key)?, value(key)?.is_u64());
        let then = now * factor;
        let then = if whole { then.round().max(1.) } else { (then * 1e9).round() / 1e9 };
        (then != now).then(|| Advice::set(key, then, what))
    };
    let hidden =
        |factor, what: &str| times("model.hidden", factor, what).or_else(|| times("model.d_model", factor, what));
    let layers = |change: f64, what: &str| {
        let now = number("model.layers")?;
        (now + change >= 1.).then(|| Advice::set("model.layers", now + change, what))
    };
    let dropout = |change: f64, what: &str| {
        let now = number("model.dropout")?;
        let then = (10. * (now + change).clamp(0., 0.5)).round() / 10.;
        (then != now).then(|| Advice::set("model.dropout", then, what))
    };
    let longer =
        |what: &str| times(if number("train.steps") == Some(0.) { "train.epochs" } else { "train.steps" }, 2., what);
    // Steps that are large already need no higher rate.
    let fast = numbers.leap.is_some_and(|(leap, _)| leap > LEAST_LEAP) || numbers.pace.is_some_and(|pace| pace > FAST);
    let higher = || if fast { None } else { times("train.lr", 3., "a higher learning rate") };
    let stopping = || {
        let off = number("train.early_stopping") == Some(0.);
        off.then(|| Advice::set("train.early_stopping", 10, "the best weights are kept either way"))
    };
    let plateau = Advice::set("train.schedule", "plateau", "lowers the learning rate when the validation loss stalls");
    let tried = match verdict {
        Verdict::TooShort if numbers.evaluations == 0 => {
            vec![Some(Advice::new("a validation part: without one nothing tells what holds elsewhere"))]
        }
        Verdict::TooShort => vec![longer("a longer run, or evaluations more often by train.eval_every")],
        Verdict::RateTooHigh => {
            vec![rate(verdict, numbers, config), Some(plateau), times("train.batch_size", 2., "steadier gradients")]
        }
        Verdict::RateTooLow => vec![rate(verdict, numbers, config), longer("a longer run")],
        Verdict::NothingLearned => vec![
            Some(Advice::new(
                "other or more data, or inputs that tell more: no size of model finds what they do not hold",
            )),
            stopping(),
        ],
        Verdict::Overfitting => {
            let (parameters, samples) = (numbers.parameters.unwrap_or(0) as f64, numbers.samples.unwrap_or(u64::MAX));
            let scarce = (parameters > samples as f64).then(|| {
                let each = parameters / samples.max(1) as f64;
                Advice::new(format!("more data: the model has {each:.0} parameters for each training sample"))
            });
            vec![
                scarce,
                hidden(0.64, "a smaller model"),
                layers(-1., "a smaller model"),
                dropout(0.1, "more regularisation"),
                stopping(),
            ]
        }
        Verdict::SlowConvergence => vec![longer("a longer run"), higher()],
        Verdict::Underfitting => vec![
            hidden(2., "a larger model"),
            layers(1., "a larger model"),
            dropout(-0.1, "less regularisation"),
            longer("a longer run"),
            higher(),
            Some(Advice::new("an evaluation beside baselines: where those do as well, there may be nothing to learn")),
        ],
        Verdict::Healthy | Verdict::Collapsed | Verdict::Gradients => vec![],
    };
    tried.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn advice_is_concrete_and_in_order() {
        let config = json!({
            "model": { "hidden": 50, "layers": 2, "dropout": 0.2 },
            "train": { "lr": 1e-3, "epochs": 100, "steps": 0, "batch_size": 32, "early_stopping": 0 },
        });
        let sets = |verdict, numbers: Numbers| -> Vec<String> {
            let set = |a: Advice| a.set.map(|(key, value)| format!("{key}={value}"));
            advice(verdict, &numbers, &config).into_iter().filter_map(set).collect()
        };
        let unknown = Numbers::default;
        assert_eq!(
            sets(Verdict::Overfitting, unknown()),
            ["model.hidden=32", "model.layers=1", "model.dropout=0.3", "train.early_stopping=10"]
        );
        assert_eq!(sets(Verdict::RateTooHigh, unknown())[0], "train.lr=0.0001");
        assert_eq!(sets(Verdict::Underfitting, unknown())[..2], ["model.hidden=100", "model.layers=3"]);
        assert_eq!(sets(Verdict::SlowConvergence, unknown()), ["train.epochs=200", "train.lr=0.003"]);
        assert_eq!(sets(Verdict::NothingLearned, unknown()), ["train.early_stopping=10"]);
        assert!(advice(Verdict::Healthy, &unknown(), &config).is_empty());
        // How far a step moves the weights tells how far to go, and where to.
        let moved = |pace, leap| Numbers { pace: Some(pace), leap: Some((leap, None)), ..Numbers::default() };
        assert_eq!(sets(Verdict::RateTooLow, moved(2e-6, 2e-6))[0], "train.lr=1");
        assert_eq!(sets(Verdict::RateTooHigh, moved(0.04, 0.05))[0], "train.lr=0.0003");
        assert_eq!(sets(Verdict::RateTooHigh, moved(0.005, 12.15))[0], "train.lr=0.0000008");
        let crowded = Numbers { parameters: Some(804_096), samples: Some(10_000), ..Numbers::default() };
        let first = advice(Verdict::Overfitting, &crowded, &config)[0].to_string();
        assert_eq!(first, "more data: the model has 80 parameters for each training sample");
    }
}
