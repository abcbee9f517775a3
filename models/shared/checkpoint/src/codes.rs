//! GGUF's blocks as small integers with scales and offsets, for programs that multiply by them as they are. Layouts are those of ggml's
//! `ggml-common.h`.

use candle_core::quantized::GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use half::f16;

use crate::blocks::{FP4, IQ4};
use crate::{Blocks, Dtype, Error, Result, Source, TensorInfo, TensorView};

/// The elements of a tensor: that at place e of group g, of [`Codes::group`] consecutive ones, is `scales[g] * codes[e] + offsets[g]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codes {
    /// From -8 to 7 if a group has 32, from -128 to 127 if it has 16.
    pub codes: Vec<i8>,
    /// Elements of a group.
    pub group: usize,
    /// A scale for each group.
    pub scales: Vec<f32>,
    /// An offset for each group.
    pub offsets: Vec<f32>,
}

impl Codes {
    fn push(&mut self, scale: f32, offset: f32, codes: impl Iterator<Item = i8>) {
        self.scales.push(scale);
        self.offsets.push(offset);
        self.codes.extend(codes);
    }
}

impl Blocks {
    /// Elements of a group of [`Codes`]; none of types that are read as numbers alone.
    fn group(self) -> Option<usize> {
        match self {
            Self::Candle(Q4_0 | Q4_1 | Q4K) => Some(32),
            Self::Candle(Q5_0 | Q5_1 | Q8_0 | Q2K | Q3K | Q5K | Q6K) | Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 => {
                Some(16)
            }
            _ => None,
        }
    }

    /// One block, of exactly its bytes, behind what is there.
    fn codes(self, b: &[u8], out: &mut Codes) {
        let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        // The 32 values of 16 bytes: the low halves, then the high ones.
        let nibble = |qs: &[u8], e: usize| if e < 16 { qs[e] & 15 } else { qs[e - 16] >> 4 };
        match self {
            Self::Candle(Q4_0) => out.push(half(0), 0., (0..32).map(|e| nibble(&b[2..18], e) as i8 - 8)),
            Self::Candle(Q4_1) => {
                let scale = half(0);
                out.push(scale, half(2) + 8. * scale, (0..32).map(|e| nibble(&b[4..20], e) as i8 - 8));
            }
            Self::Candle(Q5_0 | Q5_1) => {
                let (high, lows) = if self == Self::Candle(Q5_0) { (2, 6) } else { (4, 8) };
                let high = u32::from_le_bytes([b[high], b[high + 1], b[high + 2], b[high + 3]]);
                let scale = half(0);
                let offset = if lows == 6 { 0. } else { half(2) + 16. * scale };
                for first in [0, 16] {
                    let of = |e: usize| (nibble(&b[lows..lows + 16], e) | ((high >> e & 1) << 4) as u8) as i8 - 16;
                    out.push(scale, offset, (first..first + 16).map(of));
                }
            }
            Self::Candle(Q8_0) => {
                b[2..34].chunks_exact(16).for_each(|q| out.push(half(0), 0., q.iter().map(|q| *q as i8)))
            }
            Self::Candle(Q2K) => {
                let (scale, least) = (half(80), half(82));
                for g in 0..16 {
                    let qs = &b[16 + g / 8 * 32 + g % 2 * 16..][..16];
                    let shift = 2 * (g % 8 / 2);
                    let of = qs.iter().map(|q| (q >> shift & 3) as i8);
                    out.push(scale * f32::from(b[g] & 15), -least * f32::from(b[g] >> 4), of);
                }
            }
            Self::Candle(Q3K) => {
                let (highs, qs, scales) = (&b[..32], &b[32..96], &b[96..108]);
                for g in 0..16 {
                    // Scales of 6 bits: the low four of two in a byte, the high two of four in one.
                    let low = if g < 8 { scales[g] & 15 } else { scales[g - 8] >> 4 };
                    let six = low | (scales[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
                    let (shift, at) = (2 * (g % 8 / 2), g % 2 * 16);
                    let of = (0..16).map(|e| {
                        let low = (qs[g / 8 * 32 + at + e] >> shift & 3) as i8;
                        low - if highs[at + e] >> (g / 2) & 1 == 1 { 0 } else { 4 }
                    });
                    out.push(half(108) * (f32::from(six) - 32.), 0., of);
                }
            }
            Self::Candle(Q4K | Q5K) => {
                let (scale, least, packed) = (half(0), half(2), &b[4..16]);
                let five = self == Self::Candle(Q5K);
                let qs = if five { &b[48..176] } else { &b[16..144] };
                for g in 0..8 {
                    let (s, m) = match g < 4 {
                        true => (packed[g] & 63, packed[g + 4] & 63),
                        false => {
                            (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
                        }
                    };
                    let (scale, least) = (scale * f32::from(s), -least * f32::from(m));
                    let low = |e: usize| qs[g / 2 * 32 + e] >> (4 * (g % 2)) & 15;
                    match five {
                        false => out.push(scale, least + 8. * scale, (0..32).map(|e| low(e) as i8 - 8)),
                        true => {
                            for first in [0, 16] {
                                let of = |e: usize| (low(e) | (b[16 + e] >> g & 1) << 4) as i8 - 16;
                                out.push(scale, least + 16. * scale, (first..first + 16).map(of));
                            }
                        }
                    }
                }
            }
            Self::Candle(Q6K) => {
                let (lows, highs) = (&b[..128], &b[128..192]);
                for g in 0..16 {
                    // Of 128 elements, 32 each have the low and the high halves of 64 bytes, and two bits of 32.
                    let (part, quarter, at) = (g / 8, g % 8 / 2, g % 2 * 16);
                    let of = (0..16).map(|e| {
                        let low = lows[64 * part + quarter % 2 * 32 + at + e] >> (4 * (quarter / 2)) & 15;
                        (low | (highs[32 * part + at + e] >> (2 * quarter) & 3) << 4) as i8 - 32
                    });
                    out.push(half(208) * f32::from(b[192 + g] as i8), 0., of);
                }
            }
            Self::Iq4Nl => {
                let of = |e: usize| IQ4[usize::from(nibble(&b[2..18], e))];
                [0, 16].into_iter().for_each(|first| out.push(half(0), 0., (first..first + 16).map(of)));
            }
            Self::Iq4Xs => {
                let high = u16::from_le_bytes([b[2], b[3]]);
                for i in 0..8 {
                    let six = i32::from(b[4 + i / 2] >> (4 * (i % 2)) & 15) | i32::from(high >> (2 * i) & 3) << 4;
                    let scale = half(0) * (six - 32) as f32;
                    let of = |e: usize| IQ4[usize::from(nibble(&b[8 + 16 * i..24 + 16 * i], e))];
                    [0, 16].into_iter().for_each(|first| out.push(scale, 0., (first..first + 16).map(of)));
                }
            }
            Self::Mxfp4 => {
                let scale = 2f64.powi(i32::from(b[0]) - 128) as f32;
                let of = |e: usize| FP4[usize::from(nibble(&b[1..17], e))];
                [0, 16].into_iter().for_each(|first| out.push(scale, 0., (first..first + 16).map(of)));
            }
            // Those without groups, which are not asked.
            _ => {}
        }
    }
}

impl Source {
    /// The elements of a tensor of blocks as small integers; none of a tensor of numbers, and of blocks that are no such integers (`IQ1` to
    /// `IQ3`, `TQ1_0`, `TQ2_0`, `Q8_1`, `Q8_K`), which [`Source::tensor`] reads.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn codes(&self, tensor: &TensorInfo) -> Result<Option<Codes>> {
        let Dtype::Quantized(blocks) = tensor.dtype else { return Ok(None) };
        let Some(group) = blocks.group() else { return Ok(None) };
        let mut all = Codes { group, ..Codes::default() };
        let reserved = all.codes.try_reserve_exact(tensor.elements());
        reserved.map_err(|e| Error::io(&self.path)(std::io::Error::new(std::io::ErrorKind::OutOfMemory, e)))?;
        self.stream(&TensorView::whole(tensor), tensor.dtype, &mut |piece| {
            piece.chunks_exact(blocks.bytes()).for_each(|block| blocks.codes(block, &mut all));
            Ok(())
        })?;
        Ok(Some(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_numbers_that_blocks_stand_for() -> std::result::Result<(), String> {
        let mut known = 0;
        for name in [
            "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
        ] {
            let blocks = Blocks::from_name(name).ok_or(name)?;
            let group = blocks.group().ok_or(name)?;
            // Any bytes: some scales are no finite numbers then.
            let mut state = 1u32;
            let bytes: Vec<u8> = (0..20 * blocks.bytes())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            let mut codes = Codes { group, ..Codes::default() };
            bytes.chunks_exact(blocks.bytes()).for_each(|block| blocks.codes(block, &mut codes));
            let numbers = blocks.dequantize(&bytes)?;
            assert_eq!(codes.codes.len() * 4, numbers.len(), "{name}");
            assert_eq!(
                (codes.scales.len() * group, codes.offsets.len() * group),
                (codes.codes.len(), codes.codes.len())
            );
            let mut compared = 0;
            for (e, number) in numbers.chunks_exact(4).enumerate() {
                let number = f32::from_le_bytes([number[0], number[1], number[2], number[3]]);
                let (scale, offset) = (codes.scales[e / group], codes.offsets[e / group]);
                if !number.is_finite() {
                    continue;
                }
                compared += 1;
                let (term, got) = (scale * f32::from(codes.codes[e]), scale * f32::from(codes.codes[e]) + offset);
                let size = term.abs().max(offset.abs());
                assert!((got - number).abs() <= 3e-7 * size, "{name} {e}: {got}, {number}");
                assert!(group == 16 || (-8..8).contains(&codes.codes[e]), "{name}");
            }
            assert!(compared > codes.codes.len() / 2, "{name}: {compared}");
            known += 1;
        }
        assert_eq!(known, 13);
        Ok(())
    }
}
