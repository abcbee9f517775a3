//! Attention never stores positions × positions. Alone in its process, whose peak memory tells.
#![cfg(target_os = "linux")]

use candle_core::{Result, Var};
use zoo_kernels::check::random;
use zoo_layers::ops::{AttentionOptions, attention};

/// Peak memory in bytes.
fn peak() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().map_err(candle_core::Error::wrap)?;
    Ok(kib * 1024)
}

#[test]
fn forward_and_backward_need_memory_for_the_places_and_not_for_their_square() -> Result<()> {
    const T: usize = 8192;
    const D: usize = 16;
    let vars = (0..3).map(|i| Var::from_tensor(&random(i, &[1, 1, T, D])?)).collect::<Result<Vec<_>>>()?;
    let before = peak()?;
    let options = AttentionOptions { causal: true, ..Default::default() };
    let y = attention(&vars[0], &vars[1], &vars[2], 1, None, options)?;
    let grads = y.sqr()?.sum_all()?.backward()?;
    assert!(vars.iter().all(|v| grads.get(v).is_some()));
    let (grown, square) = (peak()? - before, 4 * T * T);
    println!("{} MB for {T} positions; their square has {} MB", grown / 1_000_000, square / 1_000_000);
    assert!(grown < square / 5, "{grown}");
    Ok(())
}
