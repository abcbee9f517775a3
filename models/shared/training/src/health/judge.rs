//! What is wrong, since when, why, and what to do: the rules.

use serde_json::Value;

use crate::Advice;

use super::finding::remedies;
use super::measure::FIRST_OF_LORA;
use super::{Check, Finding, Kind, Level, ParameterHealth, ProbeHealth, ProbeKind, Profile, Report, Role};

/// Checks whose median decides: a single one may be chance.
const RECENT: usize = 3;
/// Shares of dead elements over the whole model above which it is worth an alert, or critical.
const OVERALL: [f64; 2] = [0.05, 0.10];
/// Share of a single tensor above which it is critical whatever its role.
const HALF: f64 = 0.5;
/// Share of saturated preactivations, or of inputs out of range, that is too much.
const SATURATION: f64 = 0.10;
/// Greatest over median standard deviation of an input's features that is too much.
const SPREAD: f64 = 1e3;
/// Share of an activation's features that may be zero throughout.
const DEAD_UNITS: f64 = 0.15;
/// Change of all weights in one step, relative to their norm, that is too much.
const UPDATE: f64 = 0.3;
/// The same in a single step.
const WILD: f64 = 1.;
/// Checks for which such a step is spoken of.
const LATELY: usize = 10;
/// Share of dead elements past which they do not heal by themselves, and the one of the documents' plateau.
const LOST: f64 = 0.4;
const PLATEAU: f64 = 0.6;
/// Relative change below which a weight does not move.
const UNMOVED: f64 = 1e-9;
/// Fewest checks that show a course.
const COURSE: usize = 8;

/// Judges checks in the order of their steps. `config` (the tables `model` and `train`, or null) makes advice concrete.
pub fn judge(checks: &[Check], profile: &Profile, config: &Value) -> Report {
    let Some(last) = checks.last() else {
        return Report { verdict: Level::Healthy, dead: 0., norm: 0., findings: vec![], consequences: vec![] };
    };
    let court = Court { checks, last, profile, config };
    let mut findings = vec![];
    last.parameters.iter().for_each(|p| findings.extend(court.parameter(p)));
    last.probes.iter().for_each(|p| court.probe(p, &mut findings));
    court.whole(&mut findings);
    court.expected(&mut findings);
    court.settings(&mut findings);
    findings.sort_by_key(|f| std::cmp::Reverse(f.level));
    let worst = findings.iter().map(|f| f.level).filter(|l| *l >= Level::Alert).max();
    let (findings, consequences) = by_cause(findings);
    let n = checks.len() - 1;
    Report {
        verdict: worst.unwrap_or(Level::Healthy),
        dead: court.recent(n, |c| Some(c.dead)),
        norm: court.recent(n, |c| Some(c.norm)),
        findings,
        consequences,
    }
}

/// Findings, and what follows from steps that are too large, if that is among them.
fn by_cause(findings: Vec<Finding>) -> (Vec<Finding>, Vec<Finding>) {
    use Kind::*;
    let Some(rate) = findings.iter().find(|f| f.kind == Rate).cloned() else { return (findings, vec![]) };
    let follows = |f: &Finding| {
        matches!(f.kind, Dead | DeadUnits | Saturated | Vanishing | Exploding | Progressive | FrozenPooling)
            && f.since >= rate.since
    };
    let (mut consequences, others): (Vec<_>, Vec<_>) =
        findings.into_iter().filter(|f| f.kind != Rate).partition(follows);
    consequences.iter_mut().for_each(|f| f.remedies.clear());
    // The cause stands above all that it may have brought about.
    (std::iter::once(rate).chain(others).collect(), consequences)
}

fn percent(share: f64) -> String {
    let v = 100. * share;
    if v == 0. || v >= 10. { format!("{v:.0} %") } else { format!("{v:.1} %") }
}

struct Court<'a> {
    checks: &'a [Check],
    last: &'a Check,
    profile: &'a Profile,
    config: &'a Value,
}

impl Court<'_> {
    /// The median over the last checks up to `i` of what they have: one check decides nothing.
    fn recent(&self, i: usize, f: impl Fn(&Check) -> Option<f64>) -> f64 {
        let values = self.checks[(i + 1).saturating_sub(RECENT)..=i].iter().filter_map(f).collect();
        lower_median(values).unwrap_or(0.)
    }

    /// The step since which something has held without a break, if it holds now.
    fn since(&self, holds: impl Fn(usize) -> bool) -> Option<u64> {
        let unbroken = (0..self.checks.len()).rev().take_while(|i| holds(*i)).last();
        unbroken.map(|i| self.checks[i].step)
    }

    /// The step since which a value has been above a limit, if its recent median is now: from where the value itself first was.
    fn above(&self, limit: f64, f: impl Fn(&Check) -> Option<f64>) -> Option<u64> {
        let first = (0..self.checks.len()).rev().take_while(|i| self.recent(*i, &f) > limit).last()?;
        let before = (0..=first).rev().take_while(|i| f(&self.checks[*i]).is_some_and(|v| v > limit)).last();
        Some(self.checks[before.unwrap_or(first)].step)
    }

    fn of(&self, name: &str) -> impl Fn(&Check) -> Option<&ParameterHealth> {
        move |c| c.parameters.iter().find(|p| p.name == name)
    }

    /// The worst that can be said of a parameter.
    fn parameter(&self, p: &ParameterHealth) -> Option<Finding> {
        let of = self.of(&p.name);
        let found = |level, kind, since, because: String| {
            let remedies = remedies(kind, p.role, since, None, self.profile, self.config);
            Some(Finding { level, kind, what: p.name.clone(), since, because, remedies })
        };
        if let Some(since) = self.since(|i| of(&self.checks[i]).is_some_and(|p| p.missing)) {
            let because = "backward does not reach it: an operation between it and the loss cuts the graph (candle's fused \
                           norms, softmax and rope do), or the loss does not depend on it";
            return found(Level::Critical, Kind::Detached, since, because.into());
        }
        if p.not_finite > 0 {
            let since = self.since(|i| of(&self.checks[i]).is_some_and(|p| p.not_finite > 0)).unwrap_or(self.last.step);
            let because =
                format!("{} of {} elements of its gradient are not finite{}", p.not_finite, p.elements, self.source());
            return found(Level::Critical, Kind::NotFinite, since, because);
        }
        if p.expected == p.elements {
            return None;
        }
        let dead = |c: &Check| of(c).map(|p| p.dead);
        let limit = match p.role {
            Role::InputProjection => 0.30,
            Role::Attention => 0.20,
            Role::Mlp => 0.15,
            Role::Policy | Role::Pooling | Role::Table | Role::Other => HALF,
        };
        let now = self.recent(self.checks.len() - 1, dead);
        if let Some(since) = self.above(limit, dead) {
            let critical = now > HALF || p.role == Role::InputProjection;
            let level = if critical { Level::Critical } else { Level::Alert };
            let kind = if p.role == Role::Pooling { Kind::FrozenPooling } else { Kind::Dead };
            let because =
                format!("{} of its gradient is dead (limit {}){}", percent(now), percent(limit), self.cause(p));
            return found(level, kind, since, because);
        }
        let still = |i: usize| of(&self.checks[i]).is_some_and(|p| p.update.is_some_and(|u| u < UNMOVED));
        if p.role == Role::Pooling
            && self.checks.len() >= RECENT
            && let Some(since) = self.since(still)
            && since <= self.checks[self.checks.len() - RECENT].step
        {
            let because = "its weights do not move although it is trained";
            return found(Level::Alert, Kind::FrozenPooling, since, because.into());
        }
        let small = |i: usize| self.recent(i, |c| of(c).map(|p| p.norm)) < self.profile.norm.start;
        if let Some(since) = self.since(small) {
            let because = format!(
                "its gradient is small everywhere (norm {:.1e}, {} below 1e-8), not dead: it lies far behind a saturated or \
                 badly scaled part, or there is nothing left to learn",
                p.norm,
                percent(p.zeros)
            );
            return found(Level::Note, Kind::Vanishing, since, because);
        }
        let pooling = p.pooling.as_ref().filter(|pooling| pooling.uniform)?;
        let since = self
            .since(|i| of(&self.checks[i]).is_some_and(|p| p.pooling.as_ref().is_some_and(|pooling| pooling.uniform)));
        let because = format!("its weights are still uniform (greatest {:.4}, least {:.4})", pooling.max, pooling.min);
        found(Level::Note, Kind::UniformPooling, since.unwrap_or(self.last.step), because)
    }

    /// Which probe shows where values that are not finite come from.
    fn source(&self) -> String {
        let broken = self.last.probes.iter().find(|p| p.not_finite > 0);
        broken.map_or(String::new(), |p| format!("; the first probe with such values is {}", p.name))
    }

    /// The likely cause of dead elements, read from the probes.
    fn cause(&self, p: &ParameterHealth) -> String {
        if let Some((step, update)) = self.wild(self.checks.len()) {
            return format!("; the step at {step} changed the weights by {} of their norm", percent(update));
        }
        let probe = |kind: ProbeKind| self.last.probes.iter().filter(move |q| q.kind == kind);
        if p.role == Role::InputProjection {
            for q in probe(ProbeKind::Input) {
                if q.still.len() as f64 > 0.5 * p.dead * q.features as f64 {
                    let (n, all) = (q.still.len(), q.features);
                    return format!(
                        "; {n} of its {all} inputs were zero throughout: their columns can get no gradient"
                    );
                }
                if q.spread > SPREAD {
                    return format!(
                        "; its inputs differ in scale{}: the large ones decide what follows, and the gradients of the small \
                         ones vanish beside theirs",
                        scales(q)
                    );
                }
            }
        }
        if let Some(q) = probe(ProbeKind::Activation).find(|q| q.still.len() as f64 > DEAD_UNITS * q.features as f64) {
            return format!("; {} of {} units of {} are always zero", q.still.len(), q.features, q.name);
        }
        match p.dead >= 0.999 {
            true => {
                "; nothing that the loss depends on comes through it: it is multiplied by zero or behind dead units"
                    .into()
            }
            false => String::new(),
        }
    }

    fn probe(&self, q: &ProbeHealth, findings: &mut Vec<Finding>) {
        fn of<'a>(name: &str, c: &'a Check) -> Option<&'a ProbeHealth> {
            c.probes.iter().find(|q| q.name == name)
        }
        let mut found = |level, kind, since, because: String| {
            let remedies = remedies(kind, Role::InputProjection, since, None, self.profile, self.config);
            findings.push(Finding { level, kind, what: q.name.clone(), since, because, remedies });
        };
        let now = |since: Option<u64>| since.unwrap_or(self.last.step);
        if q.not_finite > 0 {
            let since = self.since(|i| of(&q.name, &self.checks[i]).is_some_and(|q| q.not_finite > 0));
            let because = format!("{} of its values are not finite", q.not_finite);
            return found(Level::Critical, Kind::NotFinite, now(since), because);
        }
        let saturated = |c: &Check| of(&q.name, c).map(|q| q.saturated);
        let judged = matches!(q.kind, ProbeKind::Input | ProbeKind::Preactivation);
        if let (true, Some(since)) = (judged, self.above(SATURATION, saturated)) {
            let share = self.recent(self.checks.len() - 1, saturated);
            let level = if share > HALF { Level::Critical } else { Level::Alert };
            let (kind, what) = match q.kind {
                ProbeKind::Input => (Kind::Scale, "outside [-3, 3]"),
                _ => (Kind::Saturated, "saturated, |x| > 3"),
            };
            let because = format!(
                "{} of its values are {what} (limit {}); they range from {:.3} to {:.3}{}",
                percent(share),
                percent(SATURATION),
                q.min,
                q.max,
                scales(q)
            );
            found(level, kind, since, because);
        } else if q.kind == ProbeKind::Input && q.spread > SPREAD {
            let since = self.since(|i| of(&q.name, &self.checks[i]).is_some_and(|q| q.spread > SPREAD));
            let because = format!("its features differ in scale by a factor of {:.0}{}", q.spread, scales(q));
            found(Level::Alert, Kind::Scale, now(since), because);
        }
        // Inputs may rest for long; a unit that did not move of late is dead.
        let (all, n) = (self.checks.len(), if q.kind == ProbeKind::Activation { RECENT } else { usize::MAX });
        let rests = |i: usize, feature: &usize| of(&q.name, &self.checks[i]).is_none_or(|q| q.still.contains(feature));
        let never = |feature: &&usize| (all.saturating_sub(n)..all).all(|i| rests(i, feature));
        let still: Vec<usize> = q.still.iter().filter(never).copied().collect();
        let first = self.since(|i| still.iter().all(|feature| rests(i, feature))).unwrap_or(self.last.step);
        let positions = || {
            let shown: Vec<String> = still.iter().take(8).map(usize::to_string).collect();
            format!("{}{}", shown.join(", "), if still.len() > 8 { ", …" } else { "" })
        };
        if matches!(q.kind, ProbeKind::Raw | ProbeKind::Input) && !still.is_empty() {
            let because = format!(
                "{} of {} features were zero in every check (positions {}): nothing can be learned from them, and their columns of \
                 the next map get no gradient",
                still.len(),
                q.features,
                positions()
            );
            found(Level::Alert, Kind::StillInputs, first, because);
        }
        if q.kind == ProbeKind::Activation && still.len() as f64 > DEAD_UNITS * q.features as f64 {
            let share = still.len() as f64 / q.features as f64;
            let level = if share > HALF { Level::Critical } else { Level::Alert };
            let because = format!(
                "{} of {} units were zero in the last checks (positions {}; limit {}): they are dead",
                still.len(),
                q.features,
                positions(),
                percent(DEAD_UNITS)
            );
            found(level, Kind::DeadUnits, first, because);
        }
    }

    /// The first of the last `span` checks whose step replaced the weights, more or less.
    fn wild(&self, span: usize) -> Option<(u64, f64)> {
        let lately = &self.checks[self.checks.len().saturating_sub(span)..];
        lately.iter().find_map(|c| c.update.filter(|u| *u > WILD).map(|u| (c.step, u)))
    }

    /// What concerns the whole model.
    fn whole(&self, findings: &mut Vec<Finding>) {
        let n = self.checks.len() - 1;
        let mut found = |level, kind, since, update, because: String| {
            let remedies = remedies(kind, Role::Other, since, update, self.profile, self.config);
            findings.push(Finding { level, kind, what: "all parameters".into(), since, because, remedies });
        };
        let dead = self.recent(n, |c| Some(c.dead));
        let [alert, critical] = OVERALL;
        if let Some(since) = self.above(alert, |c| Some(c.dead)) {
            let level = if dead > critical { Level::Critical } else { Level::Alert };
            let because = format!(
                "{} of all gradient elements are dead (below {} is healthy, above {} critical)",
                percent(dead),
                percent(alert),
                percent(critical)
            );
            found(level, Kind::Dead, since, None, because);
        }
        let norm = self.recent(n, |c| Some(c.norm));
        if let Some(since) = self.above(self.profile.norm.end, |c| Some(c.norm)) {
            let level = if norm > 10. * self.profile.norm.end { Level::Critical } else { Level::Alert };
            let because = format!("the gradient norm before clipping is {:.3} (limit {})", norm, self.profile.norm.end);
            found(level, Kind::Exploding, since, None, because);
        }
        if let Some(since) = self.since(|i| self.recent(i, |c| Some(c.norm)) < self.profile.norm.start) {
            let because = format!("the gradient norm is {norm:.1e}: nothing is learned any more");
            found(Level::Alert, Kind::Vanishing, since, None, because);
        }
        let update = |c: &Check| c.update;
        // What died of such a step stays dead.
        let span = if dead > alert { self.checks.len() } else { LATELY };
        let wild = self.wild(span);
        let lasting =
            self.above(UPDATE, update).filter(|_| n + 1 >= RECENT).map(|since| (since, self.recent(n, update)));
        if let Some((since, update)) = wild.or(lasting) {
            let because = format!("a step changes the weights by {} of their norm", percent(update));
            found(Level::Alert, Kind::Rate, since, Some(update), because);
        }
        if let Some((since, because)) = self.course() {
            let level = if dead > LOST { Level::Critical } else { Level::Alert };
            found(level, Kind::Progressive, since, None, because);
        }
    }

    /// The pattern of progressive gradient death: 2-5 % at first, then 10-25 %, then 40 %, and a plateau at 60 % and more.
    fn course(&self) -> Option<(u64, String)> {
        let n = self.checks.len();
        if n < COURSE {
            return None;
        }
        let eighth = |i: usize| {
            let part = &self.checks[i * n / 8..((i + 1) * n / 8).max(i * n / 8 + 1)];
            part.iter().map(|c| c.dead).sum::<f64>() / part.len() as f64
        };
        let parts: Vec<f64> = (0..8).map(eighth).collect();
        let rising = parts.windows(2).all(|w| w[1] > w[0] - 0.02);
        if parts[0] > OVERALL[1] || parts[7] < OVERALL[1] || parts[7] < 2. * parts[0] || !rising {
            return None;
        }
        let began = self.checks.iter().find(|c| c.dead > OVERALL[0]).unwrap_or(self.last);
        let plateau = parts[7] >= PLATEAU && (parts[7] - parts[6]).abs() < 0.05;
        let stage = match parts[7] {
            _ if plateau => "it has reached a plateau",
            share if share >= LOST => "it is past the point where it heals by itself",
            _ => "it is still going up",
        };
        let because = format!(
            "the share of dead elements rose steadily from {} to {}; {stage}",
            percent(parts[0]),
            percent(parts[7])
        );
        Some((began.step, because))
    }

    /// Settings outside the ranges recommended for the model.
    fn settings(&self, findings: &mut Vec<Finding>) {
        for (level, key, range, why) in [
            (Level::Alert, "lr", &self.profile.lr, "where such models learn"),
            (Level::Note, "clip_norm", &self.profile.clip, "the limits recommended for such models"),
        ] {
            let now = self.config.pointer(&format!("/train/{key}")).and_then(Value::as_f64);
            if let (Some(range), Some(now)) = (range, now)
                && !range.contains(&now)
            {
                let (least, most, what) = (*range.start(), *range.end(), format!("train.{key}"));
                let because = format!("{now} is not within {least} to {most}, {why}");
                let remedies =
                    vec![Advice::set(&what, now.clamp(least, most), format!("the range is {least} to {most}"))];
                findings.push(Finding { level, kind: Kind::Setting, what, since: 0, because, remedies });
            }
        }
    }

    /// What is as it must be.
    fn expected(&self, findings: &mut Vec<Finding>) {
        let mut found = |level, kind, what: String, because: &str| {
            let since = self.checks.first().map_or(0, |c| c.step);
            findings.push(Finding { level, kind, what, since, because: because.into(), remedies: vec![] });
        };
        for p in self.last.parameters.iter().filter(|p| p.expected > 0) {
            let of = format!("{} ({} of {} elements)", p.name, p.expected, p.elements);
            match p.role {
                Role::Table => found(Level::Expected, Kind::AbsentRows, of, "rows that the batch did not look up"),
                _ if p.name.ends_with(FIRST_OF_LORA) => found(
                    Level::Expected,
                    Kind::FirstOfLora,
                    of,
                    "the first matrix of LoRA has no gradient where the second is still zeros",
                ),
                _ => found(
                    Level::Expected,
                    Kind::KeyBias,
                    of,
                    "the bias of attention's keys, which softmax ignores: its gradient is zero by mathematics",
                ),
            }
        }
        for name in &self.last.frozen {
            found(Level::Expected, Kind::Frozen, name.clone(), "frozen, as asked for");
        }
    }
}

/// The scales of a probe's groups, in words.
fn scales(q: &ProbeHealth) -> String {
    if q.groups.is_empty() {
        return String::new();
    }
    let shown: Vec<String> =
        q.groups.iter().map(|g| format!("{} {:.1e} ({} active)", g.name, g.scale, percent(g.active))).collect();
    format!(" (root mean squares: {})", shown.join(", "))
}

/// Of an even number the lower one in the middle.
fn lower_median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}
