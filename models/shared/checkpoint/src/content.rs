//! What is in a checkpoint, whatever it is wrapped in: hashes, statistics, differences.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::atomic::hexadecimal;
use crate::cast::{Difference, floats};
use crate::input::CHUNK;
use crate::write::fill;
use crate::{Dtype, Error, Format, Plan, Result, Source, TensorInfo, View, atomic, cast};

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
        source.stream(&View::whole(t), t.dtype, &mut |piece| {
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

/// The statistics of a tensor's values; `None` for a type that holds no real numbers that we know how to read.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn stats(source: &Source, tensor: &TensorInfo) -> Result<Option<Stats>> {
    if cast::Cast::new(tensor.dtype, Dtype::F64).is_err() {
        return Ok(None);
    }
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
    source.stream(&View::whole(tensor), readable(tensor.dtype), &mut |piece| {
        for v in floats(readable(tensor.dtype), piece) {
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

/// The type to read values as numbers from: blocks as f32, anything else as it is.
fn readable(dtype: Dtype) -> Dtype {
    if matches!(dtype, Dtype::Quantized(_)) { Dtype::F32 } else { dtype }
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
        source.stream(&View::whole(tensor), tensor.dtype, &mut |piece| {
            hash.update(piece);
            Ok(())
        })?;
        Ok(hash.finalize())
    };
    if same_type && hash(a)? == hash(b)? {
        return Ok(None);
    }
    if [a.1, b.1].iter().any(|t| cast::Cast::new(t.dtype, Dtype::F64).is_err()) {
        difference.largest = f64::NAN;
        return Ok(Some(difference));
    }
    // One as a whole in memory, in its own type; the other beside it in pieces.
    let (from, to) = (readable(a.1.dtype), readable(b.1.dtype));
    a.0.stream(&View::whole(a.1), from, &mut |piece| {
        left.extend(piece);
        Ok(())
    })?;
    let (from_size, to_size) = (from.size().unwrap_or(1), to.size().unwrap_or(1));
    b.0.stream(&View::whole(b.1), to, &mut |piece| {
        let same = left.len().min(piece.len() / to_size * from_size);
        let before: Vec<u8> = left.drain(..same).collect();
        difference.add(floats(from, &before), floats(to, piece));
        Ok(())
    })?;
    Ok(Some(difference))
}

/// Writes the mean of the same tensors of several checkpoints, in f64 on the way. What is no floating-point number has to
/// be the same everywhere. The first file's metadata are kept. How many tensors it wrote is returned.
///
/// # Errors
/// A tensor is missing or differs in shape or element type, a file is damaged, the operating system's.
pub fn average(sources: &[Source], path: &Path, format: Format) -> Result<usize> {
    let Some((first, others)) = sources.split_first() else { return Ok(0) };
    for source in others {
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
    }
    let mut plan = Plan::new(first);
    plan.fit(format);
    let outline = plan.outline(format);
    atomic::replace_file(path, |file| {
        fill(format, file, path, &outline, &mut |i, sink| {
            let t = &first.tensors[i];
            let to = outline.tensors[i].dtype;
            if !t.dtype.is_float() {
                for other in others {
                    if compare((first, t), (other, other.find(&t.name).unwrap_or(t)))?.is_some() {
                        let reason = format!(
                            "tensor {} of {} has other values than in {}",
                            t.name,
                            t.dtype,
                            first.path.display()
                        );
                        return Err(Error::Refused { path: other.path.clone(), reason });
                    }
                }
                return first.stream(&View::whole(t), to, sink);
            }
            let mut mean = vec![0f64; t.elements()];
            for source in sources {
                let t = source.find(&t.name).unwrap_or(t);
                let mut at = 0;
                source.stream(&View::whole(t), Dtype::F64, &mut |piece| {
                    for v in floats(Dtype::F64, piece) {
                        mean[at] += v / sources.len() as f64;
                        at += 1;
                    }
                    Ok(())
                })?;
            }
            let named =
                |reason: String| Error::Refused { path: path.into(), reason: format!("tensor {}: {reason}", t.name) };
            let mut cast = cast::Cast::new(Dtype::F64, to).map_err(named)?;
            for piece in mean.chunks(CHUNK / 8) {
                let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
                cast.piece(&bytes, sink).map_err(|e| e.into_error(named))?;
            }
            cast.finish(&mut Difference::default()).map_err(named)
        })
    })?;
    Ok(outline.tensors.len())
}
