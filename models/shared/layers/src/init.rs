//! Initial values in PyTorch's conventions, as candle's [`Init`] so that any [`VarBuilder`](candle_nn::VarBuilder)
//! takes them; [`Params`](crate::Params) draws them from the seed.

pub use candle_nn::Init;

/// Zeros.
pub const ZEROS: Init = Init::Const(0.);
/// Ones.
pub const ONES: Init = Init::Const(1.);

/// Uniform in [-bound, bound].
pub fn uniform(bound: f64) -> Init {
    Init::Uniform { lo: -bound, up: bound }
}

/// Normal with the given mean and standard deviation.
pub fn normal(mean: f64, stdev: f64) -> Init {
    Init::Randn { mean, stdev }
}

/// What `torch.nn.Linear` starts from, for weight and bias alike: uniform within 1/√fan_in.
pub fn linear(fan_in: usize) -> Init {
    uniform(1. / (fan_in.max(1) as f64).sqrt())
}

/// What `torch.nn.LSTM` starts from, for all its tensors: uniform within 1/√hidden.
pub fn lstm(hidden: usize) -> Init {
    uniform(1. / (hidden.max(1) as f64).sqrt())
}

/// Uniform within gain · √(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010).
pub fn xavier_uniform(fan_in: usize, fan_out: usize, gain: f64) -> Init {
    uniform(gain * (6. / (fan_in + fan_out).max(1) as f64).sqrt())
}

/// Normal with standard deviation gain · √(2 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010).
pub fn xavier_normal(fan_in: usize, fan_out: usize, gain: f64) -> Init {
    normal(0., gain * (2. / (fan_in + fan_out).max(1) as f64).sqrt())
}

/// Uniform within gain · √(3 / fan_in) (He et al., ICCV 2015); the gain for ReLU is √2.
pub fn kaiming_uniform(fan_in: usize, gain: f64) -> Init {
    uniform(gain * (3. / fan_in.max(1) as f64).sqrt())
}

/// Normal with standard deviation gain / √fan_in (He et al., ICCV 2015); the gain for ReLU is √2.
pub fn kaiming_normal(fan_in: usize, gain: f64) -> Init {
    normal(0., gain / (fan_in.max(1) as f64).sqrt())
}
