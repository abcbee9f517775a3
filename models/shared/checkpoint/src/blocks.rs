//! GGUF's blocks: a few bytes that stand for 32 or 256 numbers. candle's quantizers make and read most; the others are
//! read here, by the definitions in ggml's `ggml-common.h` and `ggml-quants.c`. The grids of IQ1 to IQ3 are a file that
//! `codebooks.py` makes.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Shape, Tensor};
use half::f16;

/// A type of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocks {
    /// One that candle knows.
    Candle(GgmlDType),
    /// 8 bits with a scale and a sum.
    Q8_1,
    /// 8 bits with a scale, and sums of 16.
    Q8K,
    /// 4 bits that pick one of 16 fixed values.
    Iq4Nl,
    /// The same with 8 scales of 6 bits.
    Iq4Xs,
    /// Three values, five to a byte.
    Tq1_0,
    /// Three values, four to a byte.
    Tq2_0,
    /// OCP's microscaling: floats of 4 bits, and a power of two.
    Mxfp4,
    /// About 2 bits: eight values of a grid at a time, with signs and scales. The names are ggml's.
    Iq2Xxs,
    /// The same with another grid and more scales.
    Iq2Xs,
    /// The same with a larger grid and all signs.
    Iq2S,
    /// About 3 bits: four values of a grid at a time.
    Iq3Xxs,
    /// The same with a larger grid and all signs.
    Iq3S,
    /// About 1.6 bits: eight of three values at a time.
    Iq1S,
    /// The same with scales of 16.
    Iq1M,
}

use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

/// The type, its name, its number in a file, the elements of a block and their bytes.
const TABLE: &[(Blocks, &str, u32, usize, usize)] = &[
    (Blocks::Candle(Q4_0), "Q4_0", 2, 32, 18),
    (Blocks::Candle(Q4_1), "Q4_1", 3, 32, 20),
    (Blocks::Candle(Q5_0), "Q5_0", 6, 32, 22),
    (Blocks::Candle(Q5_1), "Q5_1", 7, 32, 24),
    (Blocks::Candle(Q8_0), "Q8_0", 8, 32, 34),
    (Blocks::Q8_1, "Q8_1", 9, 32, 36),
    (Blocks::Candle(Q2K), "Q2_K", 10, 256, 84),
    (Blocks::Candle(Q3K), "Q3_K", 11, 256, 110),
    (Blocks::Candle(Q4K), "Q4_K", 12, 256, 144),
    (Blocks::Candle(Q5K), "Q5_K", 13, 256, 176),
    (Blocks::Candle(Q6K), "Q6_K", 14, 256, 210),
    (Blocks::Q8K, "Q8_K", 15, 256, 292),
    (Blocks::Iq4Nl, "IQ4_NL", 20, 32, 18),
    (Blocks::Iq4Xs, "IQ4_XS", 23, 256, 136),
    (Blocks::Tq1_0, "TQ1_0", 34, 256, 54),
    (Blocks::Tq2_0, "TQ2_0", 35, 256, 66),
    (Blocks::Mxfp4, "MXFP4", 39, 32, 17),
    (Blocks::Iq2Xxs, "IQ2_XXS", 16, 256, 66),
    (Blocks::Iq2Xs, "IQ2_XS", 17, 256, 74),
    (Blocks::Iq2S, "IQ2_S", 22, 256, 82),
    (Blocks::Iq3Xxs, "IQ3_XXS", 18, 256, 98),
    (Blocks::Iq3S, "IQ3_S", 21, 256, 110),
    (Blocks::Iq1S, "IQ1_S", 19, 256, 50),
    (Blocks::Iq1M, "IQ1_M", 29, 256, 56),
];

/// The 16 values of IQ4.
pub(crate) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the 16 values of a float with 1 sign, 2 exponent and 1 mantissa bits.
pub(crate) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The grids one behind the other.
const CODEBOOKS: &[u8; 33_792] = include_bytes!("codebooks.bin");

/// A grid: where it begins, and the values of an entry.
type Grid = (usize, usize);
const GRID_2XXS: Grid = (0, 8);
const GRID_2XS: Grid = (256 * 8, 8);
const GRID_2S: Grid = (GRID_2XS.0 + 512 * 8, 8);
const GRID_3XXS: Grid = (GRID_2S.0 + 1024 * 8, 4);
const GRID_3S: Grid = (GRID_3XXS.0 + 256 * 4, 4);
const GRID_1S: Grid = (GRID_3S.0 + 512 * 4, 8);

/// The values of a grid's entry, scaled; bit j of `signs` makes value j negative.
fn signed_entry((start, n): Grid, entry: usize, scale: f32, signs: u8, out: &mut Vec<f32>) {
    let values = &CODEBOOKS[start + n * entry..][..n];
    out.extend(values.iter().enumerate().map(|(j, v)| {
        let value = scale * f32::from(*v as i8);
        if signs >> j & 1 == 1 { -value } else { value }
    }));
}

/// Seven signs, and an eighth that makes their number even.
fn even(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

impl Blocks {
    fn row(self) -> &'static (Self, &'static str, u32, usize, usize) {
        // Every type is in the table: a test goes through them.
        TABLE.iter().find(|t| t.0 == self).unwrap_or(&TABLE[0])
    }

    /// What its users call it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type of 32 elements that llama.cpp takes where rows are no whole blocks of 256 (for IQ4_NL, which is not made here, Q4_0).
    pub fn of_32(self) -> Option<Self> {
        let smaller = match self {
            Self::Candle(Q2K | Q3K) => Q4_0,
            Self::Candle(Q4K) => Q5_0,
            Self::Candle(Q5K) => Q5_1,
            Self::Candle(Q6K) => Q8_0,
            _ => return None,
        };
        Some(Self::Candle(smaller))
    }

    /// Its number in a file.
    pub(crate) fn number(self) -> u32 {
        self.row().2
    }

    /// The elements of a block.
    pub fn elements(self) -> usize {
        self.row().3
    }

    /// The bytes of a block.
    pub fn bytes(self) -> usize {
        self.row().4
    }

    /// By its number in a file.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|t| t.2 == number).map(|t| t.0)
    }

    /// By its name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|t| t.1.eq_ignore_ascii_case(name)).map(|t| t.0)
    }

    /// Numbers as blocks.
    pub(crate) fn quantize(self, values: &[f32]) -> Result<Vec<u8>, String> {
        let Self::Candle(kind) = self else { return Err(format!("{} is read, not written", self.name())) };
        if let Some(v) = values.iter().find(|v| !v.is_finite()) {
            return Err(format!("{v} cannot be quantized"));
        }
        let make = || {
            let t = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
            Ok::<_, candle_core::Error>(QTensor::quantize(&t, kind)?.data()?.into_owned())
        };
        make().map_err(|e| e.to_string())
    }

    /// Whole blocks as the bytes of f32.
    pub(crate) fn dequantize(self, blocks: &[u8]) -> Result<Vec<u8>, String> {
        let mut values = Vec::with_capacity(blocks.len() / self.bytes() * self.elements());
        if let Self::Candle(kind) = self {
            if blocks.as_ptr().align_offset(align_of::<f32>()) != 0 {
                // candle would panic. The allocator has never given such memory.
                return Err("its blocks came into memory at an odd address".into());
            }
            let make = || {
                let storage = QStorage::from_data(blocks.into(), &Device::Cpu, kind)?;
                let elements = blocks.len() / self.bytes() * self.elements();
                QTensor::new(storage, Shape::from(elements))?.dequantize(&Device::Cpu)?.to_vec1::<f32>()
            };
            values = make().map_err(|e| e.to_string())?;
        } else {
            blocks.chunks_exact(self.bytes()).for_each(|b| self.block(b, &mut values));
        }
        Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// One block, of exactly its bytes.
    fn block(self, b: &[u8], out: &mut Vec<f32>) {
        let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        let signed = |scale: f32, bytes: &[u8], out: &mut Vec<f32>| {
            out.extend(bytes.iter().map(|q| scale * f32::from(*q as i8)))
        };
        // Sixteen bytes are 32 values: first the low halves, then the high ones.
        let nibbles = |scale: f32, values: &[i8; 16], bytes: &[u8], out: &mut Vec<f32>| {
            out.extend(bytes.iter().map(|q| scale * f32::from(values[usize::from(q & 15)])));
            out.extend(bytes.iter().map(|q| scale * f32::from(values[usize::from(q >> 4)])));
        };
        // Base 3, as a fixed-point fraction: the digit is what a multiplication by 3 carries.
        let trit = |byte: u8, power: u8| f32::from((u16::from(byte.wrapping_mul(power)) * 3) >> 8) - 1.;
        match self {
            Self::Q8_1 => signed(half(0), &b[4..36], out),
            Self::Q8K => signed(f32::from_le_bytes([b[0], b[1], b[2], b[3]]), &b[4..260], out),
            Self::Iq4Nl => nibbles(half(0), &IQ4, &b[2..18], out),
            Self::Iq4Xs => {
                let high = u16::from_le_bytes([b[2], b[3]]);
                for i in 0..8 {
                    let low = (b[4 + i / 2] >> (4 * (i % 2))) & 15;
                    let scale = i32::from(low) | i32::from((high >> (2 * i)) & 3) << 4;
                    nibbles(half(0) * (scale - 32) as f32, &IQ4, &b[8 + 16 * i..24 + 16 * i], out);
                }
            }
            Self::Tq1_0 => {
                let scale = half(52);
                for (bytes, powers) in
                    [(&b[..32], &[1, 3, 9, 27, 81][..]), (&b[32..48], &[1, 3, 9, 27, 81]), (&b[48..52], &[1, 3, 9, 27])]
                {
                    powers.iter().for_each(|p| out.extend(bytes.iter().map(|q| trit(*q, *p) * scale)));
                }
            }
            Self::Tq2_0 => {
                let scale = half(64);
                for bytes in b[..64].chunks_exact(32) {
                    (0..4).for_each(|l| out.extend(bytes.iter().map(|q| (f32::from(q >> (2 * l) & 3) - 1.) * scale)));
                }
            }
            Self::Mxfp4 => nibbles(2f64.powi(i32::from(b[0]) - 128) as f32, &FP4, &b[1..17], out),
            Self::Iq2Xxs => {
                for b8 in b[2..66].chunks_exact(8) {
                    let signs = u32::from_le_bytes([b8[4], b8[5], b8[6], b8[7]]);
                    let scale = half(0) * (0.5 + (signs >> 28) as f32) * 0.25;
                    (0..4).for_each(|l| signed_entry(GRID_2XXS, b8[l].into(), scale, even(signs >> (7 * l)), out));
                }
            }
            Self::Iq2Xs => {
                for i in 0..32 {
                    let q = u16::from_le_bytes([b[2 + 2 * i], b[3 + 2 * i]]);
                    let scale = half(0) * (0.5 + f32::from((b[66 + i / 4] >> (4 * (i % 4 / 2))) & 15)) * 0.25;
                    signed_entry(GRID_2XS, (q & 511).into(), scale, even((q >> 9).into()), out);
                }
            }
            Self::Iq2S => {
                for i in 0..32 {
                    let high = usize::from(b[66 + i / 4] >> (2 * (i % 4)) & 3) << 8;
                    let scale = half(0) * (0.5 + f32::from((b[74 + i / 4] >> (4 * (i % 4 / 2))) & 15)) * 0.25;
                    signed_entry(GRID_2S, usize::from(b[2 + i]) | high, scale, b[34 + i], out);
                }
            }
            Self::Iq3Xxs => {
                for (i, b4) in b[66..98].chunks_exact(4).enumerate() {
                    let signs = u32::from_le_bytes([b4[0], b4[1], b4[2], b4[3]]);
                    let scale = half(0) * (0.5 + (signs >> 28) as f32) * 0.5;
                    for l in 0..4 {
                        let (eight, q) = (even(signs >> (7 * l)), 2 + 8 * i + 2 * l);
                        signed_entry(GRID_3XXS, b[q].into(), scale, eight, out);
                        signed_entry(GRID_3XXS, b[q + 1].into(), scale, eight >> 4, out);
                    }
                }
            }
            Self::Iq3S => {
                for i in 0..64 {
                    let high = usize::from(b[66 + i / 8] >> (i % 8) & 1) << 8;
                    let scale = half(0) * (1. + 2. * f32::from((b[106 + i / 16] >> (4 * (i % 16 / 8))) & 15));
                    signed_entry(GRID_3S, usize::from(b[2 + i]) | high, scale, b[74 + i / 2] >> (4 * (i % 2)), out);
                }
            }
            Self::Iq1S => {
                for i in 0..32 {
                    let high = u16::from_le_bytes([b[34 + 2 * (i / 4)], b[35 + 2 * (i / 4)]]);
                    let entry = usize::from(b[2 + i]) | usize::from(high >> (3 * (i % 4)) & 7) << 8;
                    let scale = half(0) * f32::from(2 * (high >> 12 & 7) + 1);
                    let delta = if high & 0x8000 == 0 { 0.125 } else { -0.125 };
                    let at = out.len();
                    signed_entry(GRID_1S, entry, 1., 0, out);
                    out[at..].iter_mut().for_each(|v| *v = scale * (*v + delta));
                }
            }
            Self::Iq1M => {
                let scales = [48, 50, 52, 54].map(|at| u16::from_le_bytes([b[at], b[at + 1]]));
                // The scale of all is in the four highest bits of each.
                let whole = (0..4).map(|k| (scales[k] >> 12) << (4 * k)).sum::<u16>();
                let whole = f16::from_bits(whole).to_f32();
                for i in 0..32 {
                    let high = b[32 + i / 2] >> (4 * (i % 2));
                    let scale = whole * f32::from(2 * (scales[i / 8] >> (3 * (i % 8 / 2)) & 7) + 1);
                    let delta = if high & 8 == 0 { 0.125 } else { -0.125 };
                    let at = out.len();
                    signed_entry(GRID_1S, usize::from(b[i]) | usize::from(high & 7) << 8, 1., 0, out);
                    out[at..].iter_mut().for_each(|v| *v = scale * (*v + delta));
                }
            }
            Self::Candle(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_candle_and_every_type_fills_its_block() {
        for (kind, name, number, elements, bytes) in TABLE {
            assert_eq!(
                (kind.name(), kind.number(), kind.elements(), kind.bytes()),
                (*name, *number, *elements, *bytes)
            );
            if let Blocks::Candle(k) = kind {
                assert_eq!((k.block_size(), k.type_size()), (*elements, *bytes), "{name}");
            }
            assert_eq!(kind.dequantize(&vec![0; 2 * bytes]).map(|v| v.len()), Ok(8 * elements), "{name}");
        }
    }
}
