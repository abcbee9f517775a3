//! PPO through the trainer, on a cart and a pole.

#[path = "../examples/control.rs"]
#[allow(dead_code)]
mod control;

use candle_core::Device;
use zoo_training::config::{Overrides, resolve};
use zoo_training::{End, Error, Event, Observer, Result, Silent, Trainer};

use control::{CartPole, Control, Pendulum, System, train};

const SMALL: [&str; 6] = [
    "train.steps=70",
    "ppo.environments=4",
    "ppo.rollout=16",
    "ppo.passes=3",
    "train.batch_size=16",
    "train.eval_every=35",
];

fn config<S: System>(more: &[&str]) -> Result<zoo_training::config::ConfigOf<Control<S>>> {
    let set: Vec<String> = SMALL.iter().chain(more).map(|s| s.to_string()).collect();
    resolve::<Control<S>>(&Overrides { set: &set, ..Default::default() })
}

#[test]
fn the_pole_is_balanced() -> Result<()> {
    // Solved from 475 on.
    let (last, best) = train::<CartPole>(5, &[], &mut Silent)?;
    assert!(last >= 475. && best >= 475., "{last} {best}");
    Ok(())
}

/// Counts rollouts and steps, and keeps the last estimate of the divergence.
#[derive(Default)]
struct Count {
    rollouts: u64,
    steps: u64,
    most: f64,
}

impl Observer for Count {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Collected { .. } => self.rollouts += 1,
            Event::Step { parts, .. } => {
                self.steps += 1;
                self.most = parts.iter().filter(|p| p.0 == "kl").fold(self.most, |a, p| a.max(p.1));
            }
            _ => {}
        }
    }
}

#[test]
fn a_rollout_is_trained_on_for_its_passes_or_until_the_policy_has_moved() -> Result<()> {
    let count = |more: &[&str]| -> Result<Count> {
        let mut count = Count::default();
        Trainer::new(&Control::<CartPole>::new(), &config(more)?, &Device::Cpu)?.train(&mut count, &|| false)?;
        Ok(count)
    };
    // 64 samples in batches of 16, three times.
    let whole = count(&[])?;
    assert_eq!((whole.steps, whole.rollouts), (70, 6));
    let strict = count(&["ppo.target_kl=1e-8"])?;
    assert_eq!(strict.steps, 70);
    assert!(strict.rollouts > 20, "{} rollouts", strict.rollouts);
    assert!(strict.most < whole.most);
    Ok(())
}

#[test]
fn a_run_interrupted_within_a_rollout_goes_on_to_the_same_bytes() -> Result<()> {
    interrupted::<CartPole>()?;
    // Whose actions are numbers.
    interrupted::<Pendulum>()
}

fn interrupted<S: System>() -> Result<()> {
    let task = Control::<S>::new();
    let dir = tempfile::tempdir().map_err(|e| zoo_training::Error::Run(e.to_string()))?;
    let config = config::<S>(&["train.checkpoint_every=7", "ppo.target_kl=0.02"])?;
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    {
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        trainer.begin(&whole)?;
        trainer.train(&mut Silent, &|| false)?;
    }
    {
        let mut trainer = Trainer::new(&task, &config, &Device::Cpu)?;
        trainer.begin(&parts)?;
        let steps = std::cell::Cell::new(0);
        let stop = || {
            steps.set(steps.get() + 1);
            steps.get() == 17
        };
        assert_eq!(trainer.train(&mut Silent, &stop)?.end, End::Interrupted);
    }
    {
        let mut trainer = Trainer::resume(&task, &config, &Device::Cpu, &parts, &[], &mut Silent)?;
        let outcome = trainer.train(&mut Silent, &|| false)?;
        assert_eq!((outcome.end, outcome.steps), (End::Finished, 70));
    }
    for file in ["last.safetensors", "best.safetensors", "checkpoints/step-00000070/experience.safetensors"] {
        let read = |run: &std::path::Path| std::fs::read(run.join(file)).unwrap_or_default();
        assert!(!read(&whole).is_empty() && read(&whole) == read(&parts), "{file}");
    }
    let lines = |run: &std::path::Path| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        let value = |line: &str| serde_json::from_str(line).unwrap_or_default();
        let mut lines: Vec<serde_json::Value> = text.lines().map(value).collect();
        lines.iter_mut().for_each(|l| l["seconds"] = 0.into());
        lines
    };
    assert_eq!(lines(&whole), lines(&parts));
    // Another number of environments is refused, and where it is allowed, they begin anew.
    let other = self::config::<S>(&["train.checkpoint_every=7", "ppo.target_kl=0.02", "ppo.environments=5"])?;
    let resume = |changed: &[String]| Trainer::resume(&task, &other, &Device::Cpu, &parts, changed, &mut Silent);
    let refused = resume(&[]).err();
    assert!(
        matches!(&refused, Some(Error::Changed { differences, .. }) if differences[0].key == "ppo.environments"),
        "{refused:?}"
    );
    // Allowed once, it holds for later lives, though the checkpoint's experience is still of the others.
    for changed in [&["ppo".to_string()][..], &[]] {
        assert!(resume(changed)?.examine().is_ok());
    }
    Ok(())
}

#[test]
fn settings_that_make_no_sense_for_a_policy_are_refused() -> Result<()> {
    let task = Control::<CartPole>::new();
    let refused = Trainer::new(&task, &config(&["train.overfit_batch=true"])?, &Device::Cpu).map(|_| ());
    assert!(refused.unwrap_err().to_string().contains("train.overfit_batch"));
    let unknown = config::<CartPole>(&["ppo.gama=0.9"]).map(|_| ()).unwrap_err().to_string();
    assert!(unknown.contains("did you mean ppo.gamma?"), "{unknown}");
    Ok(())
}
