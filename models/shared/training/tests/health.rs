//! Gradient health on small models with planted faults, and without.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use serde_json::{Value, json};
use zoo_layers::optim::{Moments, Optimizer, Rule, clip_factor, decay_matrices, global_norm};
use zoo_layers::{AttentionConfig, Embedding, Linear, Mode, MultiHeadAttention, Params, Qkv, init, ops};
use zoo_training::health::{
    Check, Finding, Kind, Level, Monitor, Probe, ProbeKind, Profile, Report, Role, Watched, judge, pooling_nudge,
    preflight, revive_attention,
};

/// What a network does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The hidden bias is far below zero: no unit ever fires.
    DeadRelu,
    /// The head's input is detached.
    Detached,
    /// A learning rate a thousand times too high.
    Rate,
    /// Inputs a hundred times too large.
    Saturated,
    /// Inputs of scales that differ by five orders.
    Scales,
    /// The pooling's result is multiplied by zero.
    FrozenPooling,
    /// One input is NaN.
    NotFinite,
    /// Half of the inputs are zero in every batch.
    AlwaysZero,
}

const FEATURES: usize = 12;
const BARS: usize = 5;

/// (b, bars, features) through a projection, a ReLU, a pooling over the bars and a head.
struct Net {
    projection: Linear,
    hidden: Linear,
    pooling: Tensor,
    head: Linear,
    fault: Fault,
}

impl Net {
    fn new(fault: Fault, vb: VarBuilder) -> Result<Self> {
        let bias = if fault == Fault::DeadRelu { init::uniform(0.) } else { init::ZEROS };
        let net = Self {
            projection: Linear::new(FEATURES, 16, vb.pp("input_projection"))?,
            hidden: Linear::with_biases(16, 16, Some(bias), init::linear(16), vb.pp("mlp"))?,
            pooling: vb.get_with_hints(BARS, "pooling", init::ZEROS)?,
            head: Linear::new(16, 1, vb.pp("head"))?,
            fault,
        };
        Ok(net)
    }

    /// Projected values, hidden values, output (b, 1).
    fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let projected = self.projection.forward(x)?;
        let mut before = self.hidden.forward(&projected)?;
        if self.fault == Fault::DeadRelu {
            before = (before - 1e3)?;
        }
        let hidden = before.relu()?;
        let weights = ops::softmax(&self.pooling)?.reshape((1, BARS, 1))?;
        let mut pooled = hidden.broadcast_mul(&weights)?.sum(1)?;
        if self.fault == Fault::FrozenPooling {
            // Mean over the bars instead; the pooling gets a gradient of zeros.
            // (candle drops what is multiplied by the number zero from the graph.)
            pooled = (hidden.mean(1)? + (&pooled * pooled.zeros_like()?)?)?;
        }
        if self.fault == Fault::Detached {
            pooled = pooled.detach();
        }
        let output = self.head.forward(&pooled)?;
        Ok([projected, hidden, output])
    }
}

fn inputs(fault: Fault, seed: u64) -> Result<(Tensor, Tensor)> {
    let params = Params::init(seed, &Device::Cpu);
    let vb = params.builder();
    let x = vb.get_with_hints((32, BARS, FEATURES), "x", init::normal(0., 1.))?.detach();
    let y = x.narrow(2, 0, 1)?.mean(1)?;
    let scales: Vec<f32> = (0..FEATURES)
        .map(|i| match fault {
            Fault::Saturated => 100.,
            Fault::Scales if i == 3 => 1e4,
            Fault::Scales if i % 2 == 1 => 0.1,
            Fault::AlwaysZero if i % 2 == 1 => 0.,
            Fault::NotFinite if i == 7 => f32::NAN,
            _ => 1.,
        })
        .collect();
    Ok((x.broadcast_mul(&Tensor::from_vec(scales, FEATURES, &Device::Cpu)?)?, y))
}

/// Trains with a check every ten steps.
fn train(fault: Fault, seed: u64) -> Result<(Monitor, Vec<Finding>)> {
    let params = Params::init(seed, &Device::Cpu);
    let net = Net::new(fault, params.builder())?;
    let config = json!({ "train": { "lr": 0.01, "clip_norm": 1. } });
    let mut monitor = Monitor::new(Profile::default(), config, vec![]);
    let mut optimizer = Optimizer::new(Rule::AdamW(Moments::default()), &params, decay_matrices(0.))?;
    let lr = if fault == Fault::Rate { 10. } else { 0.01 };
    let mut news = vec![];
    for step in 1..=100 {
        let (x, y) = inputs(fault, 1000 * seed + step)?;
        let [projected, hidden, output] = net.forward(&x)?;
        let loss = ops::mse(&output, &y)?;
        let grads = params.gradients(&loss.backward()?);
        let before: Vec<Tensor> = params.trainable().iter().map(|p| p.var.copy()).collect::<Result<_>>()?;
        let norm = global_norm(&grads)?;
        if norm.is_finite() {
            optimizer.step(&grads, lr, clip_factor(norm, 1.))?;
        }
        if step == 1 || step % 10 == 0 {
            let trainable = params.trainable();
            let watched = Watched::of(&trainable, &grads, Some(&before));
            let probes = [
                Probe::new("input", ProbeKind::Input, &x),
                Probe::new("projected", ProbeKind::Preactivation, &projected),
                Probe::new("hidden", ProbeKind::Activation, &hidden),
                Probe::new("output", ProbeKind::Output, &output),
            ];
            monitor.check(step, &watched, &probes)?;
            news.extend(monitor.news());
        }
    }
    Ok((monitor, news))
}

fn found(report: &Report, kind: Kind) -> Option<&Finding> {
    report.findings.iter().find(|f| f.kind == kind && f.level >= Level::Alert)
}

#[test]
fn planted_faults_are_found_and_named_and_healthy_runs_raise_nothing() -> Result<()> {
    for seed in 1..=3 {
        for (fault, expected) in [
            (Fault::DeadRelu, &[(Kind::DeadUnits, "hidden"), (Kind::Dead, "mlp.weight")][..]),
            (Fault::Detached, &[(Kind::Detached, "input_projection.weight"), (Kind::Detached, "pooling")]),
            (Fault::Rate, &[(Kind::Rate, "all parameters")]),
            (Fault::Saturated, &[(Kind::Scale, "input"), (Kind::Saturated, "projected")]),
            (Fault::Scales, &[(Kind::Scale, "input")]),
            (Fault::FrozenPooling, &[(Kind::FrozenPooling, "pooling")]),
            (Fault::NotFinite, &[(Kind::NotFinite, "input"), (Kind::NotFinite, "input_projection.weight")]),
            (Fault::AlwaysZero, &[(Kind::StillInputs, "input"), (Kind::Dead, "input_projection.weight")]),
        ] {
            let (monitor, news) = train(fault, seed)?;
            let report = monitor.report();
            assert!(report.verdict >= Level::Alert, "{fault:?}, seed {seed}");
            for (kind, what) in expected {
                let hit = |f: &&Finding| f.kind == *kind && f.what == *what && f.level >= Level::Alert;
                let all: Vec<_> = report.findings.iter().map(|f| (f.kind, f.what.as_str())).collect();
                assert!(report.findings.iter().any(|f| hit(&f)), "{fault:?}, seed {seed}: {all:?}");
                assert_eq!(news.iter().filter(hit).count(), 1, "{fault:?}: raised once, not at every check");
            }
        }
        let (monitor, news) = train(Fault::None, seed)?;
        assert_eq!((monitor.report().verdict, news), (Level::Healthy, vec![]), "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_finding_names_cause_step_and_remedies_in_their_order() -> Result<()> {
    let (monitor, _) = train(Fault::AlwaysZero, 1)?;
    let report = monitor.report();
    let dead = report.findings.iter().find(|f| f.kind == Kind::Dead && f.what == "input_projection.weight");
    let Some(dead) = dead else { panic!("{:?}", report.findings) };
    assert_eq!((dead.level, dead.since), (Level::Critical, 1));
    assert!(
        dead.because.contains("50 % of its gradient is dead (limit 30 %); 6 of its 12 inputs were zero"),
        "{}",
        dead.because
    );
    // A gain is advised for models that recommend one, and another kind of unit for those that have some that die.
    let starts = ["normalise what it sees", "halve the learning rate (train.lr=0.005)"];
    assert_eq!(dead.remedies.len(), 2);
    assert!(dead.remedies.iter().zip(starts).all(|(r, start)| r.to_string().starts_with(start)), "{:?}", dead.remedies);
    let still = found(&report, Kind::StillInputs).map(|f| f.because.as_str()).unwrap_or_default();
    assert!(still.starts_with("6 of 12 features were zero in every check (positions 1, 3, 5, 7, 9, 11)"), "{still}");
    Ok(())
}

/// A check of parameters whose gradients are given, beside weights of ones.
fn check(step: u64, gradients: &[(&str, Tensor)]) -> Result<Check> {
    let weights: Vec<Tensor> = gradients.iter().map(|(_, g)| g.ones_like()).collect::<Result<_>>()?;
    let watched: Vec<Watched> = (gradients.iter().zip(&weights))
        .map(|((name, g), weight)| Watched { name, weight, gradient: Some(g), before: None })
        .collect();
    Check::new(step, &Profile::default(), &watched, &[])
}

fn filled(n: usize, zeros: usize, value: f32) -> Result<Tensor> {
    Tensor::from_vec((0..n).map(|i| if i < zeros { 0. } else { value }).collect::<Vec<_>>(), n, &Device::Cpu)
}

#[test]
fn small_everywhere_is_small_and_zero_beside_others_is_dead() -> Result<()> {
    let small = check(1, &[("a", filled(100, 0, 1e-9)?), ("b", filled(100, 0, 1.)?)])?;
    let p = &small.parameters[0];
    assert_eq!((p.zeros, p.relative_zeros, p.dead), (1., 0., 0.));
    let report = judge(&[small], &Profile::default(), &Value::Null);
    let small = report.findings.iter().find(|f| f.kind == Kind::Vanishing);
    assert_eq!(small.map(|f| (f.level, f.what.as_str())), Some((Level::Note, "a")));
    let nothing = check(1, &[("a", filled(100, 0, 1e-9)?)])?;
    let nothing = judge(&[nothing], &Profile::default(), &Value::Null);
    assert_eq!(found(&nothing, Kind::Vanishing).map(|f| f.what.as_str()), Some("all parameters"));
    assert!(found(&report, Kind::Dead).is_none());
    let mut mixed = vec![1e-9f32; 60];
    mixed.extend(vec![1.; 40]);
    let mixed = check(1, &[("a", Tensor::from_vec(mixed, 100, &Device::Cpu)?)])?;
    assert_eq!(mixed.parameters[0].dead, 0.6);
    assert_eq!(
        found(&judge(&[mixed], &Profile::default(), &Value::Null), Kind::Dead).map(|f| f.level),
        Some(Level::Critical)
    );
    let none = check(1, &[("a", filled(100, 100, 1.)?)])?;
    assert_eq!((none.parameters[0].dead, none.dead), (1., 1.));
    Ok(())
}

#[test]
fn the_documents_thresholds_decide() -> Result<()> {
    // Share of zeros over the whole model.
    for (zeros, level) in [(4, Level::Healthy), (6, Level::Alert), (11, Level::Critical)] {
        let c = check(1, &[("a", filled(100, zeros, 1.)?)])?;
        assert_eq!(judge(&[c], &Profile::default(), &Value::Null).verdict, level, "{zeros} %");
    }
    // Limits of the parts, in a model large enough that they alone decide.
    let large = || filled(100_000, 0, 1e-3);
    for (name, limit) in [("input_projection.weight", 30), ("self_attn.in_proj_weight", 20), ("mlp.weight", 15)] {
        for (zeros, alert) in [(limit - 1, false), (limit + 1, true)] {
            let c = check(1, &[(name, filled(100, zeros, 1.)?), ("rest", large()?)])?;
            let report = judge(&[c], &Profile::default(), &Value::Null);
            assert_eq!(report.verdict >= Level::Alert, alert, "{name}: {zeros} %");
        }
    }
    // The norm, by what is usual of the model.
    let loud = check(1, &[("a", filled(100, 0, 1.1)?)])?;
    assert_eq!(
        found(&judge(std::slice::from_ref(&loud), &Profile::default(), &Value::Null), Kind::Exploding).map(|f| f.level),
        Some(Level::Alert)
    );
    let other = Profile { norm: 1e-6..20., ..Profile::default() };
    assert_eq!(judge(&[loud], &other, &Value::Null).verdict, Level::Healthy);
    Ok(())
}

#[test]
fn dying_by_and_by_is_seen_as_a_course() -> Result<()> {
    let course = |shares: &[usize]| -> Result<Vec<Check>> {
        shares.iter().enumerate().map(|(i, n)| check(500 * (i as u64 + 1), &[("a", filled(100, *n, 1.)?)])).collect()
    };
    let dying = course(&[2, 3, 3, 4, 5, 4, 5, 8, 12, 20, 24, 41, 45, 61, 66, 68, 67, 69])?;
    let report = judge(&dying, &Profile::default(), &Value::Null);
    let finding = found(&report, Kind::Progressive).map(|f| (f.level, f.since, f.because.as_str()));
    assert!(
        finding.is_some_and(|(level, since, because)| level == Level::Critical
            && since == 4000
            && because.contains("plateau")),
        "{finding:?}"
    );
    for steady in [[3; 18], [40; 18]] {
        assert!(found(&judge(&course(&steady)?, &Profile::default(), &Value::Null), Kind::Progressive).is_none());
    }
    Ok(())
}

#[test]
fn what_is_zero_by_mathematics_is_expected_and_left_out() -> Result<()> {
    let attention = |qkv| AttentionConfig {
        width: 12,
        heads: 3,
        qkv,
        bias: true,
        causal: false,
        dropout: 0.,
        init: [init::normal(0., 0.3); 2],
    };
    for (qkv, name, expected) in [(Qkv::Packed, "in_proj_bias", 12), (Qkv::Separate, "k_proj.bias", 12)] {
        let params = Params::init(1, &Device::Cpu);
        let vb = params.builder();
        let table = Embedding::new(50, 12, init::normal(0., 1.), vb.pp("embedding"))?;
        let model = MultiHeadAttention::new(attention(qkv), vb.pp("self_attn"))?;
        let ids = Tensor::from_vec(vec![3u32, 7, 7, 9, 3, 1], (2, 3), &Device::Cpu)?;
        let x = table.forward(&ids)?;
        let loss = model.forward(&x, None, Mode::Eval)?.sqr()?.sum_all()?;
        let grads = params.gradients(&loss.backward()?);
        let trainable = params.trainable();
        let watched = Watched::of(&trainable, &grads, None);
        let mut check = Check::new(1, &Profile::default(), &watched, &[])?;
        check.frozen = vec!["elsewhere".into()];
        let Some(bias) = check.parameters.iter().find(|p| p.name.ends_with(name)) else { panic!("{name}") };
        assert_eq!(bias.expected, expected);
        assert_eq!((check.parameters[0].role, check.parameters[0].expected), (Role::Table, 46 * 12));
        let report = judge(&[check], &Profile { norm: 1e-6..1e9, ..Profile::default() }, &Value::Null);
        assert_eq!(report.verdict, Level::Healthy, "{:?}", report.findings);
        let kinds: Vec<Kind> = report.findings.iter().map(|f| f.kind).collect();
        assert!([Kind::KeyBias, Kind::AbsentRows, Kind::Frozen].iter().all(|k| kinds.contains(k)), "{kinds:?}");
    }
    // A table that nothing was looked up in is dead all the same.
    let dead = Tensor::zeros((5, 4), DType::F32, &Device::Cpu)?;
    let c = check(1, &[("embedding.weight", dead), ("rest", filled(1000, 0, 1e-3)?)])?;
    assert_eq!(c.parameters[0].dead, 1.);
    Ok(())
}

#[test]
fn checks_survive_their_file() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    assert!(Check::read(dir.path())?.is_empty());
    let (monitor, _) = train(Fault::NotFinite, 1)?;
    let lines: String = monitor
        .checks()
        .iter()
        .map(|c| serde_json::to_string(c).map(|l| l + "\n"))
        .collect::<std::result::Result<_, _>>()?;
    let path = dir.path().join("health.jsonl");
    std::fs::write(&path, format!("{lines}{{\"step\":3,\"no"))?;
    let read = Check::read(dir.path())?;
    assert_eq!(read.len(), monitor.checks().len());
    assert_eq!(serde_json::to_string(&read)?, serde_json::to_string(monitor.checks())?);
    let again = judge(&read, &Profile::default(), &Value::Null);
    assert_eq!(again.findings.len(), judge(monitor.checks(), &Profile::default(), &Value::Null).findings.len());
    std::fs::write(&path, format!("{{\"no\n{lines}"))?;
    assert!(Check::read(dir.path()).unwrap_err().to_string().contains("health.jsonl: line 1: "));
    Ok(())
}

#[test]
fn units_that_die_later_are_found_and_those_that_rest_are_not() -> Result<()> {
    let check = |step: u64, alive: usize| -> Result<Check> {
        let values: Vec<f32> = (0..40).map(|i| if i % 10 < alive { 1. } else { 0. }).collect();
        let hidden = Tensor::from_vec(values, (4, 10), &Device::Cpu)?;
        Check::new(step, &Profile::default(), &[], &[Probe::new("hidden", ProbeKind::Activation, &hidden)])
    };
    let course = |alive: &[usize]| -> Result<Report> {
        let checks: Vec<Check> =
            alive.iter().enumerate().map(|(i, n)| check(i as u64 + 1, *n)).collect::<Result<_>>()?;
        Ok(judge(&checks, &Profile { norm: -1. ..1., ..Profile::default() }, &Value::Null))
    };
    let dying = course(&[10, 10, 9, 4, 4, 4, 4])?;
    let finding = found(&dying, Kind::DeadUnits).map(|f| (f.level, f.since));
    assert_eq!(finding, Some((Level::Critical, 4)), "{:?}", dying.findings);
    assert_eq!(course(&[10, 4, 10, 4, 10])?.verdict, Level::Healthy);
    assert_eq!(course(&[10, 10, 10, 9, 9, 9])?.verdict, Level::Healthy);
    Ok(())
}

#[test]
fn one_look_decides_nothing() -> Result<()> {
    let course = |zeros: &[usize]| -> Result<Level> {
        let checks = zeros.iter().enumerate().map(|(i, n)| check(i as u64 + 1, &[("a", filled(100, *n, 1.)?)]));
        Ok(judge(&checks.collect::<Result<Vec<_>>>()?, &Profile::default(), &Value::Null).verdict)
    };
    assert_eq!(course(&[0, 0, 100])?, Level::Healthy);
    assert_eq!(course(&[0, 100, 0])?, Level::Healthy);
    assert_eq!(course(&[0, 100, 100])?, Level::Critical);
    Ok(())
}

#[test]
fn what_is_not_finite_can_be_read_again() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let logits = Tensor::new(&[0f32, f32::NAN, 1.], &Device::Cpu)?;
    let w = Watched { name: "pooling", weight: &logits, gradient: Some(&logits), before: Some(&logits) };
    let check = Check::new(1, &Profile::default(), &[w], &[Probe::new("x", ProbeKind::Input, &logits)])?;
    assert_eq!(check.parameters[0].not_finite, 1);
    let read: Check = serde_json::from_str(&serde_json::to_string(&check)?)?;
    assert!(read.parameters[0].pooling.as_ref().is_some_and(|p| p.max.is_nan()));
    Ok(())
}

#[test]
fn roles_are_those_of_whole_names() {
    for (name, role) in [
        ("blocks.0.self_attn.in_proj_bias", Role::Attention),
        ("h.3.attn.c_attn.weight", Role::Attention),
        ("layer.query_norm.weight", Role::Other),
        ("value.weight", Role::Other),
        ("value_embedding.weight", Role::Other),
        ("embedding.weight", Role::Table),
        ("model.embed_tokens.weight", Role::Table),
        ("token_embedding.weight", Role::Table),
        ("temporal_projection.bias", Role::InputProjection),
        ("encoder.layers.0.linear1.weight", Role::Mlp),
    ] {
        assert_eq!(Role::of(name), role, "{name}");
    }
}

#[test]
fn a_preflight_names_settings_outside_those_that_serve() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let params = Params::init(1, &Device::Cpu);
    let vb = params.builder();
    Linear::with_biases(64, 64, Some(init::ZEROS), init::xavier_uniform(64, 64, 0.6), vb.pp("good"))?;
    Linear::with_biases(64, 64, Some(init::ZEROS), init::xavier_uniform(64, 64, 1.4), vb.pp("wild"))?;
    let profile = Profile { lr: Some(1e-5..=9e-4), clip: Some(5. ..=10.), gain: Some(0.6..=0.8), ..Profile::default() };
    let check = check(0, &[("good.weight", filled(4, 0, 1.)?)])?;
    let what = |lr: f64, clip: f64| -> zoo_training::Result<Vec<String>> {
        let config = json!({ "train": { "lr": lr, "clip_norm": clip, "init_from": "" } });
        let findings = preflight(&check, &params, &profile, &config)?.findings;
        Ok(findings.into_iter().filter(|f| f.kind == Kind::Setting).map(|f| f.what).collect())
    };
    assert_eq!(what(1e-4, 10.)?, ["wild.weight"]);
    assert_eq!(what(1e-3, 1.)?, ["train.lr", "wild.weight", "train.clip_norm"]);
    Ok(())
}

#[test]
fn dead_attention_is_given_noise_and_a_pooling_is_pulled_to_the_end() -> Result<()> {
    let params = Params::init(1, &Device::Cpu);
    let vb = params.builder();
    let weight = vb.get_with_hints((6, 2), "self_attn.in_proj_weight", init::ZEROS)?;
    vb.get_with_hints(6, "self_attn.in_proj_bias", init::ONES)?;
    let pooling = vb.get_with_hints(20, "pooling", init::ZEROS)?;
    let profile = Profile::default();
    let alive = check(7, &[("self_attn.in_proj_weight", filled(12, 0, 1.)?.reshape((6, 2))?)])?;
    assert!(revive_attention(&params, &alive, &profile, 1)?.is_empty());
    let dead = check(
        7,
        &[
            ("self_attn.in_proj_weight", filled(12, 12, 1.)?.reshape((6, 2))?),
            ("self_attn.in_proj_bias", filled(6, 6, 1.)?),
        ],
    )?;
    assert_eq!(revive_attention(&params, &dead, &profile, 1)?.len(), 2);
    let std = (weight.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt();
    assert!((0.003..0.03).contains(&std), "{std}");
    assert_eq!(params.tensors()[1].1.to_vec1::<f32>()?, [0.; 6]);
    // Gradient descent on the pull alone leads to the target: 0.6 : 0.4 / 17, over 2.2.
    let mut optimizer = Optimizer::new(Rule::Sgd { momentum: 0., nesterov: false }, &params, decay_matrices(0.))?;
    let anything = (pooling.sum(D::Minus1)? * 0.)?;
    for _ in 0..20_000 {
        let mut grads = params.gradients(&anything.backward()?);
        pooling_nudge(&params, &mut grads, &profile)?;
        optimizer.step(&grads, 20., 1.)?;
    }
    let weights = ops::softmax(&pooling)?.to_vec1::<f32>()?;
    assert!((weights[19] - 0.6 / 2.2).abs() < 5e-3 && (weights[0] - 0.4 / 17. / 2.2).abs() < 5e-3, "{weights:?}");
    assert!((weights.iter().sum::<f32>() - 1.).abs() < 1e-5);
    Ok(())
}

#[test]
fn gradients_that_do_not_lie_in_order_are_measured_alike() -> Result<()> {
    let g = Var::randn(0f32, 1., (6, 4), &Device::Cpu)?;
    let turned = g.t()?.contiguous()?.t()?;
    assert!(!turned.is_contiguous());
    let (a, b) = (check(1, &[("w", g.as_tensor().clone())])?, check(1, &[("w", turned)])?);
    assert_eq!(a.parameters[0].norm, b.parameters[0].norm);
    let w = Watched { name: "w", weight: &g.narrow(0, 0, 2)?, gradient: Some(&g), before: None };
    assert!(Check::new(1, &Profile::default(), &[w], &[]).is_err());
    Ok(())
}
