//! Which SIMD instructions kernels use: the best the machine has, or the level that `ZOO_SIMD` names.
//!
//! Results are the same bits on every run at one level; levels differ in the last bits.

use std::cell::Cell;
use std::sync::OnceLock;

use candle_core::{Result, bail};
use pulp::{Simd, WithSimd};

/// A set of SIMD instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One element at a time.
    Scalar,
    /// 128 bits (64-bit Arm).
    Neon,
    /// 256 bits with fused multiply-add (x86-64).
    Avx2,
    /// 512 bits (x86-64).
    Avx512,
}

impl Level {
    /// The name that `ZOO_SIMD` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => false,
            Self::Avx2 => pulp::x86::V3::try_new().is_some(),
            #[cfg(feature = "x86-v4")]
            Self::Avx512 => pulp::x86::V4::try_new().is_some(),
            #[cfg(not(feature = "x86-v4"))]
            Self::Avx512 => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => pulp::aarch64::Neon::try_new().is_some(),
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn available(self) -> bool {
        self == Self::Scalar
    }

    /// Runs a kernel with this level's instructions.
    pub fn run<K: WithSimd>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            #[cfg(feature = "x86-v4")]
            Self::Avx512 => {
                if let Some(simd) = pulp::x86::V4::try_new() {
                    return Simd::vectorize(simd, kernel);
                }
            }
            Self::Avx2 => {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    return Simd::vectorize(simd, kernel);
                }
            }
            _ => {}
        }
        #[cfg(target_arch = "aarch64")]
        if let (Self::Neon, Some(simd)) = (self, pulp::aarch64::Neon::try_new()) {
            return Simd::vectorize(simd, kernel);
        }
        Simd::vectorize(pulp::Scalar::new(), kernel)
    }
}

/// The levels this machine has, the best last.
pub fn levels() -> Vec<Level> {
    [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512].into_iter().filter(|l| l.available()).collect()
}

/// How the processor multiplies bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16 {
    /// As f32, of factors that are rounded before.
    Rounded,
    /// By `vdpbf16ps` (x86-64: AMD since Zen 4, Intel's servers since Cooper Lake).
    Avx512,
}

impl Bf16 {
    /// The name that `ZOO_SIMD` takes, which stands for the vectors of [`Level::Avx512`] too; none of what needs no instructions.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Rounded => None,
            Self::Avx512 => Some("avx512bf16"),
        }
    }
}

/// The ways this machine has, the best last.
pub fn units() -> Vec<Bf16> {
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    if Level::Avx512.available() && is_x86_feature_detected!("avx512bf16") {
        return vec![Bf16::Rounded, Bf16::Avx512];
    }
    vec![Bf16::Rounded]
}

thread_local! {
    static OVERRIDE: Cell<Option<Level>> = const { Cell::new(None) };
    static BF16: Cell<Option<Bf16>> = const { Cell::new(None) };
}

/// Runs `f` with the products in bf16 that this thread calls computed in one of the [`units`] (for tests and benchmarks).
///
/// # Panics
/// The machine has no such unit.
pub fn with_bf16<R>(unit: Bf16, f: impl FnOnce() -> R) -> R {
    assert!(units().contains(&unit), "this machine has no {unit:?}");
    overriding(&BF16, unit, f)
}

/// Runs `f` with the ops that this thread calls at another level (for tests and benchmarks).
pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    overriding(&OVERRIDE, level, f)
}

/// The level in force.
///
/// # Errors
/// `ZOO_SIMD` names a level that does not exist or that this machine lacks.
pub fn level() -> Result<Level> {
    if let Some(level) = OVERRIDE.get() {
        return Ok(level);
    }
    match chosen() {
        Ok((level, _)) => Ok(*level),
        Err(message) => bail!("{message}"),
    }
}

/// How products in bf16 are computed, in force.
pub fn bf16() -> Bf16 {
    let chosen = || match (OVERRIDE.get(), chosen()) {
        (None, Ok((_, bf16))) => *bf16,
        _ => Bf16::Rounded,
    };
    BF16.get().unwrap_or_else(chosen)
}

/// What `ZOO_SIMD` says, or the best there is.
fn chosen() -> &'static std::result::Result<(Level, Bf16), String> {
    static CHOSEN: OnceLock<std::result::Result<(Level, Bf16), String>> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let all = choices();
        let Ok(name) = std::env::var("ZOO_SIMD") else {
            return Ok(all.last().map_or((Level::Scalar, Bf16::Rounded), |(_, choice)| *choice));
        };
        let names = || all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = all.iter().find(|(known, _)| *known == name).map(|(_, choice)| *choice);
        found.ok_or_else(|| format!("ZOO_SIMD={name}: this machine has {}", names()))
    })
}

/// What `ZOO_SIMD` may name here, the best last.
pub fn choices() -> Vec<(&'static str, (Level, Bf16))> {
    let plain = levels().into_iter().map(|level| (level.name(), (level, Bf16::Rounded)));
    plain.chain(units().into_iter().filter_map(|unit| Some((unit.name()?, (Level::Avx512, unit))))).collect()
}

thread_local! {
    static FUSED_HERE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `f` with the ops that this thread calls by their kernels or by their references (for tests and benchmarks).
pub fn with_fused<R>(fused: bool, f: impl FnOnce() -> R) -> R {
    overriding(&FUSED_HERE, fused, f)
}

/// Runs `f` without overrides of this thread's.
pub(super) fn apart<R>(f: impl FnOnce() -> R) -> R {
    restoring(&OVERRIDE, None, || restoring(&BF16, None, || restoring(&FUSED_HERE, None, f)))
}

/// Runs `f` with a thread's override in force.
pub(crate) fn overriding<T: Copy + 'static, R>(
    cell: &'static std::thread::LocalKey<Cell<Option<T>>>,
    value: T,
    f: impl FnOnce() -> R,
) -> R {
    restoring(cell, Some(value), f)
}

/// Runs `f` with a thread's override, or none, in its cell.
pub(crate) fn restoring<T: Copy + 'static, R>(
    cell: &'static std::thread::LocalKey<Cell<Option<T>>>,
    value: Option<T>,
    f: impl FnOnce() -> R,
) -> R {
    struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<Option<T>>>, Option<T>);
    impl<T: Copy> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(cell, cell.replace(value));
    f()
}

/// Whether fused kernels are used: `ZOO_FUSED=0` runs every op by its reference.
pub fn fused() -> bool {
    static FUSED: OnceLock<bool> = OnceLock::new();
    if let Some(fused) = FUSED_HERE.get() {
        return fused;
    }
    *FUSED.get_or_init(|| std::env::var("ZOO_FUSED").map_or(true, |v| v != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_lasts_as_long_as_its_closure() -> Result<()> {
        let before = level()?;
        assert_eq!(with_level(Level::Scalar, level)?, Level::Scalar);
        assert_eq!(level()?, before);
        assert!(levels().contains(&before));
        Ok(())
    }
}
