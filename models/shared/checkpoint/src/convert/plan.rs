//! What a conversion will write, tensor by tensor, before anything is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::rules::{Action, Rule, Rules};
use crate::cast::Difference;
use crate::input::Sink;
use crate::outline::{Outline, Planned};
use crate::source::elements;
use crate::{Blocks, Dtype, Error, Format, Result, Source, TensorInfo, TensorView};

/// A tensor to be written: views of the source's, one behind the other along a dimension.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    dim: usize,
    views: Vec<TensorView<'a>>,
}

impl<'a> Output<'a> {
    fn of(tensor: &'a TensorInfo) -> Self {
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            dim: 0,
            views: vec![TensorView::whole(tensor)],
        }
    }

    /// The type of the elements in the source.
    pub fn source_dtype(&self) -> Dtype {
        self.views[0].tensor.dtype
    }

    pub(super) fn views(&self) -> &[TensorView<'a>] {
        &self.views
    }

    /// The names in the source.
    pub fn from(&self) -> Vec<&'a str> {
        self.views.iter().map(|v| v.tensor.name.as_str()).collect()
    }

    fn transpose(mut self) -> std::result::Result<Self, String> {
        let Some((a, b)) = self.shape.len().checked_sub(2).map(|a| (a, a + 1)) else {
            return Err(format!("{} {:?} has no two dimensions to swap", self.name, self.shape));
        };
        self.shape.swap(a, b);
        if self.dim == a || self.dim == b {
            self.dim = a + b - self.dim;
        }
        self.views = self.views.into_iter().map(|v| v.transpose(a, b)).collect::<std::result::Result<_, _>>()?;
        Ok(self)
    }

    /// The rows of `heads` heads in the order in which rotary pairs are neighbours; `back` to that in which they are halves.
    fn interleave(mut self, heads: usize, back: bool) -> std::result::Result<Self, String> {
        let rows = self.shape.first().copied().unwrap_or(0);
        if rows == 0 || heads.checked_mul(2).is_none_or(|halves| !rows.is_multiple_of(halves)) {
            return Err(format!(
                "{} {:?} has no rows of {heads} heads of an even number of features",
                self.name, self.shape
            ));
        }
        let [view] = self.views.as_slice() else {
            return Err(format!("{} was put together by a rule before: its rows cannot be reordered", self.name));
        };
        let half = rows / heads / 2;
        let sizes = if back { [heads, half, 2] } else { [heads, 2, half] };
        let view = match self.is_reordered() {
            false => view.clone().unfold(sizes).transpose(1, 2)?,
            // What a rule before did may be what this one undoes.
            true => match view
                .shape
                .starts_with(&sizes)
                .then(|| view.clone().transpose(1, 2))
                .transpose()?
                .and_then(TensorView::fold)
            {
                Some(whole) => whole,
                None => return Err(format!("the rows of {} were reordered by a rule before", self.name)),
            },
        };
        self.views = vec![view];
        Ok(self)
    }

    /// Whether its rows were reordered: such a view has other dimensions than what it makes.
    fn is_reordered(&self) -> bool {
        self.views.iter().any(|v| v.shape.len() != self.shape.len())
    }

    fn split(&self, dim: usize, parts: usize) -> std::result::Result<Vec<Self>, String> {
        let size = self.shape.get(dim).copied().unwrap_or(0);
        if size == 0 || size % parts != 0 {
            return Err(format!("{} {:?} has no {parts} equal parts in dimension {dim}", self.name, self.shape));
        }
        if self.views.len() > 1 {
            return Err(format!("{} was put together by a rule before: it cannot be split again", self.name));
        }
        let part = |i: usize| {
            let view = self.views[0].clone().narrow(dim, i * (size / parts), size / parts)?;
            Ok(Self { shape: view.shape.clone(), views: vec![view], ..self.clone() })
        };
        (0..parts).map(part).collect()
    }

    /// Hands its elements to `sink`, in C order.
    pub(crate) fn stream(&self, source: &Source, difference: &mut Difference, sink: Sink) -> Result<()> {
        // Along the outermost dimension, or alone, one comes after the other; blocks must not end where a part does.
        let (outer, inner) = self.shape.split_at(self.dim);
        let blocks = matches!(self.dtype, Dtype::Quantized(_)) && inner.len() < 2;
        if self.views.len() == 1 || elements(outer) == 1 && !blocks {
            return self.views.iter().try_for_each(|v| source.stream_measured(v, self.dtype, difference, sink));
        }
        // Otherwise a row of each in turn: they have to be in memory.
        let plain = if blocks { Dtype::F32 } else { self.dtype };
        let mut parts = vec![];
        for view in &self.views {
            let mut bytes = vec![];
            source.stream_measured(view, plain, difference, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            parts.push(bytes);
        }
        let rows = elements(outer).max(1);
        let pieces = (0..rows).flat_map(|row| {
            parts.iter().map(move |part| {
                let n = part.len() / rows;
                &part[row * n..(row + 1) * n]
            })
        });
        if !blocks {
            return pieces.into_iter().try_for_each(sink);
        }
        let named = |reason: String| Error::Refused {
            path: source.path.clone(),
            reason: format!("tensor {}: {reason}", self.name),
        };
        let mut cast = crate::cast::Cast::new(plain, self.dtype).map_err(named)?;
        for piece in pieces {
            cast.piece(piece, sink).map_err(|e| e.into_error(named))?;
        }
        cast.finish(difference).map_err(named)
    }

    /// Where its values come from: those of one key are tied.
    fn key(&self) -> String {
        let view = |v: &TensorView| {
            let d = &v.tensor.data;
            format!(
                "{} {} {:?} {:?} {} {:?} {:?}",
                d.segment, d.offset, d.strides, v.tensor.dtype, v.offset, v.shape, v.strides
            )
        };
        format!("{} {} {}", self.dtype, self.dim, self.views.iter().map(view).collect::<Vec<_>>().join("|"))
    }
}

/// What a conversion will write. Nothing that the source holds is left out unless a rule says so.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub(crate) source: &'a Source,
    /// The tensors, in the order in which they are written.
    pub outputs: Vec<Output<'a>>,
    /// Everything else.
    pub metadata: Map<String, Value>,
    /// The entry of a PyTorch file that is to hold the tensors, beside one for each of the metadata; by default the file is
    /// the tensors, as `load_state_dict` takes them.
    pub entry: Option<String>,
    /// Whether tensors with the same values are written once for each of their names.
    pub untied: bool,
    /// Set from elsewhere, such as a signal's handler, it ends a [`write`](Plan::write) with an error; nothing is left then.
    pub stop: Arc<AtomicBool>,
    /// Names of tensors and entries that rules dropped.
    pub dropped: Vec<String>,
    /// What the source holds and no format keeps, unless a rule dropped it.
    pub lost: Vec<String>,
    /// Tensors that were to be quantized and are not, and why.
    pub kept: Vec<(String, String)>,
    /// Tensors that are quantized in other blocks than was asked for, as those do not fit.
    pub instead: Vec<(String, Blocks)>,
}

impl<'a> Plan<'a> {
    /// Everything as it is.
    pub fn new(source: &'a Source) -> Self {
        Self {
            source,
            outputs: source.tensors.iter().map(Output::of).collect(),
            metadata: source.metadata.clone(),
            entry: None,
            untied: false,
            stop: Arc::default(),
            dropped: vec![],
            lost: source.left_out.clone(),
            kept: vec![],
            instead: vec![],
        }
    }

    fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Error::Refused { path: self.source.path.clone(), reason: reason.into() })
    }

    /// Applies rules, in their order.
    ///
    /// # Errors
    /// A rule finds nothing, does not fit a tensor, or leads to two tensors of one name.
    pub fn apply(&mut self, rules: &Rules) -> Result<()> {
        for rule in &rules.0 {
            let found = match self.apply_one(rule) {
                Ok(found) => found,
                Err(e) => return self.refuse(format!("rule `{}`: {e}", rule.text)),
            };
            if !found && !rule.optional {
                return self.refuse(format!(
                    "rule `{}` fits no tensor (`{}?` would allow that)",
                    rule.text,
                    rule.text.split_whitespace().next().unwrap_or("")
                ));
            }
        }
        let mut names = BTreeSet::new();
        match self.outputs.iter().find(|o| !names.insert(&o.name)) {
            Some(twice) => self.refuse(format!("the rules lead to two tensors named {}", twice.name)),
            None => Ok(()),
        }
    }

    fn apply_one(&mut self, rule: &Rule) -> std::result::Result<bool, String> {
        let fits = |name: &str| rule.pattern.is_match(name);
        let expand = |name: &str, template: &str| {
            let mut out = String::new();
            if let Some(captures) = rule.pattern.captures(name) {
                captures.expand(&braced(template), &mut out);
            }
            out
        };
        let mut found = false;
        match &rule.action {
            Action::Drop => {
                let dropped = &mut self.dropped;
                let mut keep = |name: &str| {
                    let drop = fits(name);
                    if drop {
                        dropped.push(name.to_string());
                    }
                    !drop
                };
                let before = self.outputs.len() + self.metadata.len() + self.lost.len();
                self.outputs.retain(|o| keep(&o.name));
                self.metadata.retain(|key, _| keep(key));
                self.lost.retain(|what| keep(what.split_once(": ").map_or(what.as_str(), |(path, _)| path)));
                return Ok(before > self.outputs.len() + self.metadata.len() + self.lost.len());
            }
            Action::DropEqual(other) => {
                let Some(other) = self.outputs.iter().find(|o| &o.name == other).cloned() else { return Ok(false) };
                for at in (0..self.outputs.len()).rev() {
                    let o = &self.outputs[at];
                    if fits(&o.name) && o.name != other.name && self.same(o, &other).map_err(|e| e.to_string())? {
                        self.dropped.push(self.outputs.remove(at).name);
                        found = true;
                    }
                }
                return Ok(found);
            }
            Action::Concat { parts, dim, name } => return self.concat(rule, parts, *dim, name, expand),
            Action::Tie { name, to } => {
                let Some(target) = self.outputs.iter().find(|o| &o.name == to).cloned() else { return Ok(false) };
                if let Some(at) = self.outputs.iter().position(|o| &o.name == name) {
                    if !self.same(&self.outputs[at], &target).map_err(|e| e.to_string())? {
                        if rule.optional {
                            return Ok(false);
                        }
                        return Err(format!("{name} and {to} have different values"));
                    }
                    self.outputs[at] = Output { name: name.clone(), ..target };
                } else {
                    self.outputs.push(Output { name: name.clone(), ..target });
                }
                return Ok(true);
            }
            _ => {}
        }
        for output in std::mem::take(&mut self.outputs) {
            if !fits(&output.name) {
                self.outputs.push(output);
                continue;
            }
            found = true;
            let moves = matches!(rule.action, Action::Transpose | Action::Split { .. });
            if moves && output.is_reordered() {
                return Err(format!(
                    "the rows of {} were reordered by a rule before: that rule has to come last",
                    output.name
                ));
            }
            match &rule.action {
                Action::Rename(template) => {
                    let name = expand(&output.name, template);
                    self.outputs.push(Output { name, ..output });
                }
                Action::Transpose => self.outputs.push(output.transpose()?),
                Action::Interleave { heads, back } => self.outputs.push(output.interleave(*heads, *back)?),
                Action::Split { dim, names } => {
                    let parts = output.split(*dim, names.len())?;
                    let named =
                        parts.into_iter().zip(names).map(|(p, n)| Output { name: expand(&output.name, n), ..p });
                    self.outputs.extend(named);
                }
                Action::Cast(dtype) => self.outputs.push(Output { dtype: *dtype, ..output }),
                _ => {}
            }
        }
        Ok(found)
    }

    fn concat(
        &mut self,
        rule: &Rule,
        others: &[String],
        dim: usize,
        name: &str,
        expand: impl Fn(&str, &str) -> String,
    ) -> std::result::Result<bool, String> {
        let firsts: Vec<String> =
            self.outputs.iter().filter(|o| rule.pattern.is_match(&o.name)).map(|o| o.name.clone()).collect();
        for first in &firsts {
            let names: Vec<String> = others.iter().map(|t| expand(first, t)).collect();
            let mut take = |part: &String| {
                let at = self.outputs.iter().position(|o| &o.name == part).ok_or(format!("there is no {part}"))?;
                Ok::<_, String>(self.outputs.remove(at))
            };
            let begun = take(first)?;
            if begun.views.len() > 1 && begun.dim != dim || begun.dtype.size().is_none() && dim > 0 {
                return Err(format!(
                    "{first} cannot be continued along dimension {dim}: it was put together along another, or is of {}",
                    begun.dtype
                ));
            }
            let mut whole = Output { name: expand(first, name), dim, ..begun };
            for part in &names {
                let part = take(part)?;
                let rest =
                    |s: &[usize]| s.iter().enumerate().filter(|(k, _)| *k != dim).map(|(_, d)| *d).collect::<Vec<_>>();
                let fits =
                    dim < part.shape.len() && rest(&part.shape) == rest(&whole.shape) && part.dtype == whole.dtype;
                if !fits
                    || part.views.len() > 1
                    || part.is_reordered()
                    || whole.is_reordered()
                    || whole.shape.len() != part.shape.len()
                {
                    let (a, b) = (&part.shape, &whole.shape);
                    return Err(format!(
                        "{} {a:?} of {} does not go behind {b:?} of {}",
                        part.name, part.dtype, whole.dtype
                    ));
                }
                whole.shape[dim] += part.shape[dim];
                whole.views.extend(part.views);
            }
            self.outputs.push(whole);
        }
        Ok(!firsts.is_empty())
    }

    fn same(&self, a: &Output, b: &Output) -> Result<bool> {
        if a.shape != b.shape || a.dtype != b.dtype {
            return Ok(false);
        }
        let hash = |o: &Output| -> Result<_> {
            let mut hash = Sha256::new();
            o.stream(self.source, &mut Difference::default(), &mut |piece| {
                hash.update(piece);
                Ok(())
            })?;
            Ok(hash.finalize())
        };
        Ok(hash(a)? == hash(b)?)
    }

    /// The rule that drops something of [`Plan::lost`].
    pub fn drops(&self, lost: &str) -> String {
        format!("drop {}", Rules::literal(lost.split_once(": ").map_or(lost, |(path, _)| path)))
    }

    /// The path of what is converted.
    pub fn path(&self) -> &std::path::Path {
        &self.source.path
    }

    /// All floating-point tensors as `dtype`; integers and truth values stay.
    pub fn cast(&mut self, dtype: Dtype) {
        self.outputs.iter_mut().filter(|o| o.dtype.is_float()).for_each(|o| o.dtype = dtype);
    }

    /// All matrices of floating-point numbers as blocks, those whose rows do not divide into blocks of 256 as smaller ones
    /// ([`Blocks::of_32`]), which `instead` names; the rest stays, and `kept` says why.
    ///
    /// # Errors
    /// No tensor can be quantized.
    pub fn quantize(&mut self, to: Blocks) -> Result<()> {
        let block = to.elements();
        let mut any = false;
        for o in self.outputs.iter_mut().filter(|o| o.dtype.is_float()) {
            let row = o.shape.last().copied().unwrap_or(0);
            let fits = |blocks: &Blocks| row > 0 && row % blocks.elements() == 0;
            if o.shape.len() < 2 {
                self.kept.push((o.name.clone(), "no matrix".into()));
                continue;
            }
            let Some(blocks) = Some(to).filter(fits).or(to.of_32().filter(fits)) else {
                self.kept.push((o.name.clone(), format!("rows of {row} are no whole blocks of {block}")));
                continue;
            };
            o.dtype = Dtype::Quantized(blocks);
            any = true;
            if blocks != to {
                self.instead.push((o.name.clone(), blocks));
            }
        }
        if any {
            return Ok(());
        }
        self.refuse(format!("no tensor is a matrix with rows of whole blocks of {block}: nothing to quantize"))
    }

    /// Makes element types fit a format: what is in blocks becomes f32 where there are none.
    pub fn fit(&mut self, format: Format) {
        for o in &mut self.outputs {
            if !format.holds_blocks() && matches!(o.dtype, Dtype::Quantized(_)) {
                o.dtype = Dtype::F32;
            }
        }
    }

    /// As an outline for a writer. Tensors with the same values from the same place are tied.
    pub(crate) fn outline(&self, format: Format) -> Outline {
        let mut first: HashMap<String, usize> = HashMap::new();
        let planned = self.outputs.iter().enumerate().map(|(i, o)| {
            let earlier = *first.entry(o.key()).or_insert(i);
            let empty = o.shape.contains(&0);
            Planned {
                name: o.name.clone(),
                dtype: o.dtype,
                shape: o.shape.clone(),
                tied_to: (earlier != i && !empty && format.holds_ties() && !self.untied).then_some(earlier),
            }
        });
        let typed = if format == self.source.format { self.source.typed.clone() } else { vec![] };
        // What says something else now has its type by its value.
        let kept = |key: &str| self.metadata.get(key).is_some_and(|value| self.source.metadata.get(key) == Some(value));
        let typed = typed.into_iter().filter(|t| kept(&t.key)).collect();
        Outline { tensors: planned.collect(), metadata: self.metadata.clone(), entry: self.entry.clone(), typed }
    }

    /// Ties among the outputs in that format: name by name.
    pub fn ties(&self, format: Format) -> BTreeMap<String, String> {
        let outline = self.outline(format);
        let tie = |t: &Planned| Some((t.name.clone(), outline.tensors[t.tied_to?].name.clone()));
        outline.tensors.iter().filter_map(tie).collect()
    }
}

/// `$1` as `${1}`: without braces a name would take the letters behind it.
fn braced(template: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        match digits {
            0 => out.push('$'),
            n => out.push_str(&format!("${{{}}}", &after[..n])),
        }
        rest = &after[digits..];
    }
    out + rest
}
