//! Element types: every one that a format we read can hold, whether candle has it or not.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;

use crate::Blocks;

/// The type of a tensor's elements. Values are little-endian, in C order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names say it all.
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    C64,
    U64,
    I64,
    F64,
    C128,
    /// Blocks of GGUF: dequantized wherever another type is asked for.
    Quantized(Blocks),
}

/// What formats call a type: (type, bits, safetensors, PyTorch's dtype, NumPy's letter and size).
type Names = (Dtype, usize, Option<&'static str>, Option<&'static str>, Option<&'static str>);

const NAMES: &[Names] = &[
    (Dtype::Bool, 8, Some("BOOL"), Some("bool"), Some("b1")),
    (Dtype::F4, 4, Some("F4"), None, None),
    (Dtype::F6E2M3, 6, Some("F6_E2M3"), None, None),
    (Dtype::F6E3M2, 6, Some("F6_E3M2"), None, None),
    (Dtype::U8, 8, Some("U8"), Some("uint8"), Some("u1")),
    (Dtype::I8, 8, Some("I8"), Some("int8"), Some("i1")),
    (Dtype::F8E5M2, 8, Some("F8_E5M2"), Some("float8_e5m2"), None),
    (Dtype::F8E4M3, 8, Some("F8_E4M3"), Some("float8_e4m3fn"), None),
    (Dtype::F8E8M0, 8, Some("F8_E8M0"), Some("float8_e8m0fnu"), None),
    (Dtype::F8E4M3Fnuz, 8, Some("F8_E4M3FNUZ"), Some("float8_e4m3fnuz"), None),
    (Dtype::F8E5M2Fnuz, 8, Some("F8_E5M2FNUZ"), Some("float8_e5m2fnuz"), None),
    (Dtype::U16, 16, Some("U16"), Some("uint16"), Some("u2")),
    (Dtype::I16, 16, Some("I16"), Some("int16"), Some("i2")),
    (Dtype::F16, 16, Some("F16"), Some("float16"), Some("f2")),
    // What NumPy writes for the bfloat16 of ml_dtypes: two bytes of no type.
    (Dtype::BF16, 16, Some("BF16"), Some("bfloat16"), Some("V2")),
    (Dtype::U32, 32, Some("U32"), Some("uint32"), Some("u4")),
    (Dtype::I32, 32, Some("I32"), Some("int32"), Some("i4")),
    (Dtype::F32, 32, Some("F32"), Some("float32"), Some("f4")),
    (Dtype::C64, 64, Some("C64"), Some("complex64"), Some("c8")),
    (Dtype::U64, 64, Some("U64"), Some("uint64"), Some("u8")),
    (Dtype::I64, 64, Some("I64"), Some("int64"), Some("i8")),
    (Dtype::F64, 64, Some("F64"), Some("float64"), Some("f8")),
    (Dtype::C128, 128, None, Some("complex128"), Some("c16")),
];

impl Dtype {
    fn names(self) -> Option<&'static Names> {
        NAMES.iter().find(|n| n.0 == self)
    }

    fn find(wanted: impl Fn(&Names) -> bool) -> Option<Self> {
        NAMES.iter().find(|n| wanted(n)).map(|n| n.0)
    }

    /// Bytes of an element; `None` for those that share bytes.
    pub fn size(self) -> Option<usize> {
        self.names().filter(|n| n.1 % 8 == 0).map(|n| n.1 / 8)
    }

    /// Bytes of `elements`; `None` if they don't fill whole bytes or blocks, or are more than a file can hold.
    pub fn bytes(self, elements: usize) -> Option<u64> {
        let elements = elements as u64;
        let (parts, of, bytes) = match self {
            Self::Quantized(q) => (elements, q.elements() as u64, q.bytes() as u64),
            _ => (elements.checked_mul(self.names()?.1 as u64)?, 8, 1),
        };
        (parts % of == 0).then(|| (parts / of).checked_mul(bytes)).flatten().filter(|b| *b <= i64::MAX as u64)
    }

    /// Whether values are real floating-point numbers.
    pub fn is_float(self) -> bool {
        use Dtype::*;
        matches!(self, F8E5M2 | F8E4M3 | F8E8M0 | F8E4M3Fnuz | F8E5M2Fnuz | F16 | BF16 | F32 | F64 | Quantized(_))
    }

    /// What the safetensors format calls it.
    pub(crate) fn safetensors(self) -> Option<&'static str> {
        self.names()?.2
    }

    pub(crate) fn from_safetensors(name: &str) -> Option<Self> {
        Self::find(|n| n.2 == Some(name))
    }

    /// What PyTorch calls it: `torch.NAME`.
    pub(crate) fn torch(self) -> Option<&'static str> {
        self.names()?.3
    }

    pub(crate) fn from_torch(name: &str) -> Option<Self> {
        Self::find(|n| n.3 == Some(name))
    }

    /// NumPy's letter and size, without the byte order.
    pub(crate) fn numpy(self) -> Option<&'static str> {
        self.names()?.4
    }

    pub(crate) fn from_numpy(name: &str) -> Option<Self> {
        Self::find(|n| n.4 == Some(name))
    }

    /// candle's type of the same values, if it has one.
    pub fn candle(self) -> Option<DType> {
        Some(match self {
            Self::U8 => DType::U8,
            Self::I16 => DType::I16,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::U32 => DType::U32,
            Self::I32 => DType::I32,
            Self::F32 => DType::F32,
            Self::I64 => DType::I64,
            Self::F64 => DType::F64,
            Self::F8E4M3 => DType::F8E4M3,
            _ => return None,
        })
    }

    /// Our type of candle's.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        NAMES.iter().map(|n| n.0).find(|d| d.candle() == Some(dtype))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Quantized(q) => f.write_str(q.name()),
            _ => f.write_str(self.safetensors().or(self.torch()).unwrap_or_default()),
        }
    }
}

impl FromStr for Dtype {
    type Err = String;

    /// By the name in any of the formats, in any case: `f32`, `float32`, `bf16`, `q8_0`.
    fn from_str(name: &str) -> Result<Self, String> {
        let name = name.to_ascii_lowercase();
        let same = |n: Option<&str>| n.is_some_and(|n| n.to_ascii_lowercase() == name);
        let plain = || Self::find(|n| same(n.2) || same(n.3));
        let quantized = || Blocks::from_name(&name).map(Self::Quantized);
        plain().or_else(quantized).ok_or_else(|| {
            format!("no element type is called {name}: the usual ones are f32, f16, bf16, f64, i64, u8, q8_0, q4_0, q4_k, q6_k")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::GgmlDType;

    #[test]
    fn names_lead_back_to_their_type_and_sizes_never_wrap() {
        for n in NAMES {
            assert!(n.2.is_none_or(|name| Dtype::from_safetensors(name) == Some(n.0)));
            assert!(n.3.is_none_or(|name| Dtype::from_torch(name) == Some(n.0)));
            assert!(n.4.is_none_or(|name| Dtype::from_numpy(name) == Some(n.0)));
            assert_eq!(n.0.to_string().parse(), Ok(n.0));
            assert_eq!(n.0.bytes(usize::MAX), None, "{}", n.0);
            assert!(n.0.candle().is_none_or(|d| Some(d.size_in_bytes()) == n.0.size() && Dtype::of(d) == Some(n.0)));
        }
        assert_eq!(
            ("bfloat16".parse(), "Q4_k".parse()),
            (Ok(Dtype::BF16), Ok(Dtype::Quantized(Blocks::Candle(GgmlDType::Q4K))))
        );
        assert!("f33".parse::<Dtype>().is_err());
        assert_eq!((Dtype::F4.bytes(3), Dtype::F4.bytes(4), Dtype::F6E2M3.bytes(4)), (None, Some(2), Some(3)));
        assert_eq!(
            (
                Dtype::Quantized(Blocks::Candle(GgmlDType::Q8_0)).bytes(33),
                Dtype::Quantized(Blocks::Candle(GgmlDType::Q8_0)).bytes(64)
            ),
            (None, Some(68))
        );
    }
}
