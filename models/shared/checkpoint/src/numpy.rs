//! NumPy's element types and orders.

use crate::Dtype;
use crate::input::{Parsed, refused};

/// A NumPy type: `<f4`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Descr {
    pub(crate) big_endian: bool,
    /// `None` for texts.
    pub(crate) dtype: Option<Dtype>,
    /// Characters of a text, each of four bytes (`U`) or one (`S`).
    pub(crate) text: Option<(char, usize)>,
}

impl Descr {
    pub(crate) fn parse(descr: &str) -> Parsed<Self> {
        let name = descr.trim_start_matches(['<', '>', '|', '=']);
        let big_endian = descr.starts_with('>');
        if let Some(dtype) = Dtype::from_numpy(name) {
            return Ok(Self { big_endian, dtype: Some(dtype), text: None });
        }
        let kind = name.chars().next().unwrap_or('?');
        match (kind, name.get(1..).and_then(|n| n.parse::<usize>().ok())) {
            ('U' | 'S', Some(n)) if n < 1 << 28 => Ok(Self { big_endian, dtype: None, text: Some((kind, n)) }),
            ('O', _) => {
                refused("it holds an array of Python objects, which only a pickle can describe: nothing was executed")
            }
            _ => refused(format!(
                "it holds an array of type {descr}, which is no number: known are b, i, u, f, c and V2 (bfloat16)"
            )),
        }
    }

    pub(crate) fn size(&self) -> usize {
        match (self.dtype, self.text) {
            (Some(dtype), _) => dtype.size().unwrap_or(1),
            (_, Some(('U', n))) => 4 * n,
            (_, text) => text.map_or(1, |(_, n)| n),
        }
    }
}

/// The strides of Fortran order.
pub(crate) fn fortran(shape: &[usize]) -> Vec<usize> {
    let mut next = 1usize;
    let step = |d: &usize| {
        let stride = next;
        next = next.saturating_mul(*d);
        stride
    };
    shape.iter().map(step).collect()
}
