use candle_core::{Device, Result, Tensor};

/// Sines and cosines of positions (Vaswani et al. 2017), (t, c): feature 2i of place t is sin(t / 10000^(2i/c)), feature 2i + 1
/// its cosine. `c` is even.
pub fn sinusoids(t: usize, c: usize, device: &Device) -> Result<Tensor> {
    let angle = |t: usize, i: usize| t as f64 / 10_000f64.powf(2. * i as f64 / c as f64);
    let row = |t: usize| (0..c / 2).flat_map(move |i| [angle(t, i).sin() as f32, angle(t, i).cos() as f32]);
    Tensor::from_vec((0..t).flat_map(row).collect::<Vec<_>>(), (t, c), device)
}
