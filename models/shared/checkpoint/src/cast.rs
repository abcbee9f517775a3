//! Elements of one type as another: rounded to nearest, and refused where a value would be lost.

use half::{bf16, f16};

use crate::input::Sink;
use crate::{Dtype, Error};

/// How far values moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    /// The largest |written − read|.
    pub largest: f64,
    /// The sum of the squares of the differences.
    errors: f64,
    /// The sum of the squares of the values.
    values: f64,
}

impl Difference {
    /// The root of the mean square of the differences, over that of the values.
    pub fn relative(&self) -> f64 {
        if self.errors == 0. { 0. } else { (self.errors / self.values).sqrt() }
    }

    pub(crate) fn add(&mut self, before: impl Iterator<Item = f64>, after: impl Iterator<Item = f64>) {
        for (before, after) in before.zip(after) {
            if before.is_finite() != after.is_finite() || before.is_nan() != after.is_nan() {
                self.largest = f64::INFINITY;
                self.errors = f64::INFINITY;
            } else if before.is_finite() {
                let error = (after - before).abs();
                self.largest = self.largest.max(error);
                self.errors += error * error;
                self.values += before * before;
            }
        }
    }
}

/// Why a piece was not cast: a value that does not fit, or what the sink said.
pub(crate) enum Stop {
    Value(String),
    Sink(Error),
}

impl Stop {
    pub(crate) fn into_error(self, named: impl Fn(String) -> Error) -> Error {
        match self {
            Self::Value(reason) => named(reason),
            Self::Sink(e) => e,
        }
    }
}

/// A cast of elements that come in pieces.
pub(crate) struct Cast {
    from: Dtype,
    to: Dtype,
    out: Vec<u8>,
    /// Elements waiting for the rest of their block.
    rest: Vec<f32>,
    difference: Difference,
}

impl Cast {
    pub(crate) fn new(from: Dtype, to: Dtype) -> Result<Self, String> {
        let number = |d: Dtype| {
            matches!(d, Dtype::Bool)
                || d.candle().is_some()
                || matches!(d, Dtype::I8 | Dtype::U16 | Dtype::U64 | Dtype::F8E5M2)
        };
        let known = number(from) && (number(to) || matches!(to, Dtype::Quantized(_)));
        if !known || matches!(to, Dtype::Quantized(_)) && !from.is_float() {
            return Err(format!("elements of {from} cannot be made {to}"));
        }
        Ok(Self { from, to, out: vec![], rest: vec![], difference: Difference::default() })
    }

    /// Casts a piece of whole elements.
    pub(crate) fn piece(&mut self, bytes: &[u8], sink: Sink) -> Result<(), Stop> {
        self.out.clear();
        if let Dtype::Quantized(q) = self.to {
            self.rest.extend(floats(self.from, bytes).map(|v| v as f32));
            // Blocks of one super-block each: candle's quantizers take whole rows of them.
            let whole = self.rest.len() / q.elements() * q.elements();
            if whole > 0 {
                self.out = q.quantize(&self.rest[..whole]).map_err(Stop::Value)?;
                let after = q.dequantize(&self.out).map_err(Stop::Value)?;
                self.difference.add(self.rest.iter().map(|v| f64::from(*v)), floats(Dtype::F32, &after));
                self.rest.drain(..whole);
            }
            return sink(&self.out).map_err(Stop::Sink);
        }
        match (self.from, self.to) {
            // The usual ones, by the processor's own instructions where it has them.
            (Dtype::F32, Dtype::F16 | Dtype::BF16) => self.narrow_f32(bytes)?,
            (from, to) if from.is_float() => {
                for value in floats(from, bytes) {
                    put_float(to, value, &mut self.out).map_err(|why| Stop::Value(format!("{value:e} {why}")))?;
                }
            }
            (from, to) => {
                for value in integers(from, bytes) {
                    put_integer(to, value, &mut self.out).map_err(|why| Stop::Value(format!("{value} {why}")))?;
                }
            }
        }
        self.difference.add(floats(self.from, bytes), floats(self.to, &self.out));
        sink(&self.out).map_err(Stop::Sink)
    }

    fn narrow_f32(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        use half::slice::HalfFloatSliceExt;
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let lost = |v: &f32, infinite: bool| v.is_finite() && infinite;
        let problem = match self.to {
            Dtype::F16 => {
                let mut narrow = vec![f16::ZERO; values.len()];
                narrow.convert_from_f32_slice(&values);
                self.out.extend(narrow.iter().flat_map(|v| v.to_le_bytes()));
                values.iter().zip(&narrow).find(|(v, n)| lost(v, n.is_infinite())).map(|(v, _)| *v)
            }
            _ => {
                let mut narrow = vec![bf16::ZERO; values.len()];
                narrow.convert_from_f32_slice(&values);
                self.out.extend(narrow.iter().flat_map(|v| v.to_le_bytes()));
                values.iter().zip(&narrow).find(|(v, n)| lost(v, n.is_infinite())).map(|(v, _)| *v)
            }
        };
        problem.map_or(Ok(()), |v| Err(Stop::Value(format!("{v:e} {}", too_large(self.to)))))
    }

    /// All pieces came.
    pub(crate) fn finish(self, difference: &mut Difference) -> Result<(), String> {
        difference.largest = difference.largest.max(self.difference.largest);
        difference.errors += self.difference.errors;
        difference.values += self.difference.values;
        match self.rest.len() {
            0 => Ok(()),
            n => Err(format!("{n} elements are left over: {} comes in whole blocks", self.to)),
        }
    }
}

fn too_large(to: Dtype) -> String {
    let wider = if to == Dtype::F32 { "f64" } else { "f32 or f64" };
    format!("is too large for {to}: {wider} would hold it")
}

/// The elements as f64, which holds each of them exactly.
pub(crate) fn floats(from: Dtype, bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    let size = from.size().unwrap_or(1);
    bytes.chunks_exact(size).map(move |b| match from {
        Dtype::F64 => f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        Dtype::F16 => f16::from_le_bytes([b[0], b[1]]).into(),
        Dtype::BF16 => bf16::from_le_bytes([b[0], b[1]]).into(),
        Dtype::F8E5M2 => f16::from_le_bytes([0, b[0]]).into(),
        Dtype::F8E4M3 => float8::F8E4M3::from_bits(b[0]).to_f64(),
        _ => integer(from, b) as f64,
    })
}

fn integer(from: Dtype, b: &[u8]) -> i128 {
    match from {
        Dtype::I8 => i128::from(b[0] as i8),
        Dtype::I16 => i16::from_le_bytes([b[0], b[1]]).into(),
        Dtype::U16 => u16::from_le_bytes([b[0], b[1]]).into(),
        Dtype::I32 => i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        Dtype::U32 => u32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        Dtype::I64 => i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]).into(),
        Dtype::U64 => u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]).into(),
        _ => b[0].into(),
    }
}

pub(crate) fn integers(from: Dtype, bytes: &[u8]) -> impl Iterator<Item = i128> + '_ {
    bytes.chunks_exact(from.size().unwrap_or(1)).map(move |b| integer(from, b))
}

/// Rounded to f32 so that rounding once more gives what rounding once would: towards zero, and odd if anything is lost.
fn odd(value: f64) -> f32 {
    let near = value as f32;
    if !near.is_finite() || f64::from(near) == value {
        return near;
    }
    let towards_zero = if f64::from(near).abs() > value.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(towards_zero | 1)
}

fn put_float(to: Dtype, value: f64, out: &mut Vec<u8>) -> Result<(), String> {
    let infinite = match to {
        Dtype::F64 => {
            out.extend(value.to_le_bytes());
            false
        }
        Dtype::F32 => {
            out.extend((value as f32).to_le_bytes());
            (value as f32).is_infinite()
        }
        Dtype::F16 => {
            out.extend(f16::from_f32(odd(value)).to_le_bytes());
            f16::from_f32(odd(value)).is_infinite()
        }
        Dtype::BF16 => {
            out.extend(bf16::from_f32(odd(value)).to_le_bytes());
            bf16::from_f32(odd(value)).is_infinite()
        }
        Dtype::F8E4M3 => {
            out.push(float8::F8E4M3::from_f64(value).to_bits());
            if value.is_infinite() {
                return Err(format!("does not fit {to}, which has no infinity"));
            }
            value.abs() > 448.
        }
        _ if value.fract() == 0. && value.abs() < 2f64.powi(64) => return put_integer(to, value as i128, out),
        _ => return Err(format!("is no {to}")),
    };
    if infinite && value.is_finite() { Err(too_large(to)) } else { Ok(()) }
}

fn put_integer(to: Dtype, value: i128, out: &mut Vec<u8>) -> Result<(), String> {
    let fits =
        |low: i128, high: i128| if (low..=high).contains(&value) { Ok(()) } else { Err(format!("does not fit {to}")) };
    let bytes = value.to_le_bytes();
    let mut whole = |low: i128, high: i128| {
        fits(low, high)?;
        out.extend_from_slice(&bytes[..to.size().unwrap_or(1)]);
        Ok(())
    };
    match to {
        Dtype::Bool => whole(0, 1),
        Dtype::U8 => whole(0, u8::MAX.into()),
        Dtype::I8 => whole(i8::MIN.into(), i8::MAX.into()),
        Dtype::U16 => whole(0, u16::MAX.into()),
        Dtype::I16 => whole(i16::MIN.into(), i16::MAX.into()),
        Dtype::U32 => whole(0, u32::MAX.into()),
        Dtype::I32 => whole(i32::MIN.into(), i32::MAX.into()),
        Dtype::U64 => whole(0, u64::MAX.into()),
        Dtype::I64 => whole(i64::MIN.into(), i64::MAX.into()),
        Dtype::F8E5M2 => Err("is not made F8_E5M2".into()),
        _ => {
            let at = out.len();
            put_float(to, value as f64, out)?;
            match floats(to, &out[at..]).next() {
                Some(held) if held as i128 == value => Ok(()),
                _ => Err(format!("is not held exactly by {to}")),
            }
        }
    }
}
