//! What is in a checkpoint, whatever it is wrapped in: hashes, statistics, differences.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::atomic::hexadecimal;
use crate::cast::{Difference, floats};
use crate::formats::fill;
use crate::input::CHUNK;
use crate::{Dtype, Error, Format, Plan, Result, Source, TensorInfo, TensorView, atomic, cast};

/// The SHA-256 of all tensors by name: of each its name, element type, shape and values. The same for the same tensors in
/// any format, in any order, tied or not. Metadata are not part of it.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn content_hash(source: &Source) -> Result<String> {
    let mut tensors: Vec<&TensorInfo> = source.tensors.iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut whole = Sha256::new();
    for t in tensors {
        let mut values = Sha256::new();
        source.stream(&TensorView::whole(t), t.dtype, &mut |piece| {
            values.update(piece);
            Ok(())
        })?;
        whole.update((t.name.len() as u64).to_le_bytes());
        whole.update(&t.name);
        whole.update(format!("{} {:?}", t.dtype, t.shape));
        whole.update(values.finalize());
    }
    Ok(hexadecimal(whole))
}

/// What the values of a tensor are like. Those that are not finite are counted, and left out of the rest.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Stats {
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, of the whole population.
    pub std: f64,
    /// The square root of the sum of their squares.
    pub norm: f64,
    /// How many are 0.
    pub zeros: usize,
    /// How many are no number.
    pub nan: usize,
    /// How many are infinite.
    pub infinite: usize,
}

/// The statistics of a tensor's values (of a complex number's parts); `None` for a type that holds no real numbers that we know how to read.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn stats(source: &Source, tensor: &TensorInfo) -> Result<Option<Stats>> {
    let Some((read, part)) = numbers(tensor.dtype) else { return Ok(None) };
    let (mut n, mut mean, mut squares, mut sum) = (0usize, 0f64, 0f64, 0f64);
    let mut s = Stats {
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        mean: 0.,
        std: 0.,
        norm: 0.,
        zeros: 0,
        nan: 0,
        infinite: 0,
    };
    source.stream(&TensorView::whole(tensor).in_storage_order(), read, &mut |piece| {
        for v in floats(part, piece) {
            if v.is_nan() {
                s.nan += 1;
            } else if v.is_infinite() {
                s.infinite += 1;
            } else {
                n += 1;
                s.zeros += usize::from(v == 0.);
                (s.min, s.max) = (s.min.min(v), s.max.max(v));
                sum += v * v;
                // Welford's recurrence: no difference of large sums.
                let from = v - mean;
                mean += from / n as f64;
                squares += from * (v - mean);
            }
        }
        Ok(())
    })?;
    if n == 0 {
        (s.min, s.max) = (0., 0.);
        return Ok(Some(s));
    }
    Ok(Some(Stats { mean, std: (squares / n as f64).sqrt(), norm: sum.sqrt(), ..s }))
}

/// How to get at values as numbers: the type to read them as, and the type of their parts (a complex number has two).
fn numbers(dtype: Dtype) -> Option<(Dtype, Dtype)> {
    match dtype {
        Dtype::Quantized(_) => Some((Dtype::F32, Dtype::F32)),
        Dtype::C64 => Some((dtype, Dtype::F32)),
        Dtype::C128 => Some((dtype, Dtype::F64)),
        _ => cast::Cast::new(dtype, Dtype::F64).ok().map(|_| (dtype, dtype)),
    }
}

/// How far the values of two tensors of one shape are apart; `None` if they are the same, bit for bit.
///
/// # Errors
/// A file cannot be read or is damaged, or the values are no numbers.
pub fn compare(a: (&Source, &TensorInfo), b: (&Source, &TensorInfo)) -> Result<Option<Difference>> {
    let (mut left, mut difference) = (std::collections::VecDeque::new(), Difference::default());
    let same_type = a.1.dtype == b.1.dtype;
    let hash = |(source, tensor): (&Source, &TensorInfo)| -> Result<_> {
        let mut hash = Sha256::new();
        source.stream(&TensorView::whole(tensor), tensor.dtype, &mut |piece| {
            hash.update(piece);
            Ok(())
        })?;
        Ok(hash.finalize())
    };
    if same_type && hash(a)? == hash(b)? {
        return Ok(None);
    }
    let (Some((read_a, from)), Some((read_b, to))) = (numbers(a.1.dtype), numbers(b.1.dtype)) else {
        difference.largest = f64::NAN;
        return Ok(Some(difference));
    };
    // One as a whole in memory, in its own type; the other beside it in pieces.
    a.0.stream(&TensorView::whole(a.1), read_a, &mut |piece| {
        left.extend(piece);
        Ok(())
    })?;
    let (from_size, to_size) = (from.size().unwrap_or(1), to.size().unwrap_or(1));
    b.0.stream(&TensorView::whole(b.1), read_b, &mut |piece| {
        let same = left.len().min(piece.len() / to_size * from_size);
        let before: Vec<u8> = left.drain(..same).collect();
        difference.add(floats(from, &before), floats(to, piece));
        Ok(())
    })?;
    Ok(Some(difference))
}

/// Writes the mean of the same tensors of several checkpoints, in f64 on the way. What is no floating-point number, such as
/// a count of batches, and the metadata are the first file's; the names of tensors that differ so are returned. `stop`, set
/// from elsewhere, ends it with an error; nothing is left then.
///
/// # Errors
/// A tensor is missing or differs in shape or element type, a mean is not finite, a file is damaged, the operating system's.
pub fn average(sources: &[Source], path: &Path, format: Format, stop: &AtomicBool) -> Result<Vec<String>> {
    let mut kept = vec![];
    let Some((first, others)) = sources.split_first() else { return Ok(kept) };
    others.iter().try_for_each(|other| alike(first, other))?;
    let mut plan = Plan::new(first);
    plan.fit(format);
    if let Some(lost) = sources.iter().flat_map(|s| &s.left_out).next() {
        return Err(Error::Refused { path: path.into(), reason: format!("{lost} cannot be kept") });
    }
    let mut outline = plan.outline(format);
    // Tied in one file and not in another: both have a mean of their own.
    for i in 0..outline.tensors.len() {
        if let Some(to) = outline.tensors[i].tied_to {
            let root =
                |source: &Source, name: &str| source.number(name).map(|k| source.tensors[k].tied_to.unwrap_or(k));
            let (name, other) = (&first.tensors[i].name, &first.tensors[to].name);
            if others.iter().any(|s| root(s, name) != root(s, other)) {
                outline.tensors[i].tied_to = None;
            }
        }
    }
    atomic::replace_file(path, |file| {
        fill(format, file, path, &outline, &mut |i, sink| {
            let t = &first.tensors[i];
            let to = outline.tensors[i].dtype;
            if !t.dtype.is_float() {
                for other in others {
                    if compare((first, t), (other, other.find(&t.name).unwrap_or(t)))?.is_some() {
                        kept.push(t.name.clone());
                        break;
                    }
                }
                return first.stream(&TensorView::whole(t), to, sink);
            }
            let mean = mean(sources, t, path, stop)?;
            let named =
                |reason: String| Error::Refused { path: path.into(), reason: format!("tensor {}: {reason}", t.name) };
            if mean.iter().any(|v| !v.is_finite()) {
                return Err(named("its mean is not finite: zoo verify tells which file has such values".into()));
            }
            let mut cast = cast::Cast::new(Dtype::F64, to).map_err(named)?;
            for piece in mean.chunks(CHUNK / 8) {
                let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
                cast.piece(&bytes, sink).map_err(|e| e.into_error(named))?;
            }
            cast.finish(&mut Difference::default()).map_err(named)
        })
    })?;
    Ok(kept)
}

/// Refuses files that have not the same tensors, each of the same type and shape.
fn alike(first: &Source, source: &Source) -> Result<()> {
    for t in &first.tensors {
        let Some(other) = source.find(&t.name) else {
            return Err(Error::Missing { path: source.path.clone(), tensor: t.name.clone() });
        };
        if other.shape != t.shape || other.dtype != t.dtype {
            let reason = format!(
                "tensor {} is {} {:?}, in {} it is {} {:?}",
                t.name,
                other.dtype,
                other.shape,
                first.path.display(),
                t.dtype,
                t.shape
            );
            return Err(Error::Refused { path: source.path.clone(), reason });
        }
    }
    if let Some(t) = source.tensors.iter().find(|t| first.find(&t.name).is_none()) {
        return Err(Error::Missing { path: first.path.clone(), tensor: t.name.clone() });
    }
    Ok(())
}

/// The mean of a tensor over all files, in f64.
fn mean(sources: &[Source], of: &TensorInfo, path: &Path, stop: &AtomicBool) -> Result<Vec<f64>> {
    let mut mean = vec![0f64; of.elements()];
    for source in sources {
        let t = source.find(&of.name).unwrap_or(of);
        let mut at = 0;
        source.stream(&TensorView::whole(t), Dtype::F64, &mut |piece| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Refused { path: path.into(), reason: "stopped: nothing was written".into() });
            }
            for v in floats(Dtype::F64, piece) {
                mean[at] += v / sources.len() as f64;
                at += 1;
            }
            Ok(())
        })?;
    }
    Ok(mean)
}
