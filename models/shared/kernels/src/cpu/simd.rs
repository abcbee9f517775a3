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

thread_local! {
    static OVERRIDE: Cell<Option<Level>> = const { Cell::new(None) };
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
    static CHOSEN: OnceLock<std::result::Result<Level, String>> = OnceLock::new();
    if let Some(level) = OVERRIDE.get() {
        return Ok(level);
    }
    let choose = || {
        let levels = levels();
        let best = levels.last().copied().unwrap_or(Level::Scalar);
        let Ok(name) = std::env::var("ZOO_SIMD") else { return Ok(best) };
        let names = || levels.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
        levels
            .iter()
            .copied()
            .find(|l| l.name() == name)
            .ok_or_else(|| format!("ZOO_SIMD={name}: this machine has {}", names()))
    };
    match CHOSEN.get_or_init(choose) {
        Ok(level) => Ok(*level),
        Err(message) => bail!("{message}"),
    }
}

thread_local! {
    static FUSED_HERE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `f` with the ops that this thread calls by their kernels or by their references (for tests and benchmarks).
pub fn with_fused<R>(fused: bool, f: impl FnOnce() -> R) -> R {
    overriding(&FUSED_HERE, fused, f)
}

/// Runs `f` with a thread's override in force.
pub(crate) fn overriding<T: Copy + 'static, R>(
    cell: &'static std::thread::LocalKey<Cell<Option<T>>>,
    value: T,
    f: impl FnOnce() -> R,
) -> R {
    struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<Option<T>>>, Option<T>);
    impl<T: Copy> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(cell, cell.replace(Some(value)));
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
