/// One trading day, adjusted for splits and dividends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// First price.
    pub open: f64,
    /// Highest price.
    pub high: f64,
    /// Lowest price.
    pub low: f64,
    /// Last price.
    pub close: f64,
    /// Shares traded.
    pub volume: f64,
}

impl Bar {
    /// A bar of which only the close is known.
    pub fn closing(close: f64) -> Self {
        Self { open: close, high: close, low: close, close, volume: 0. }
    }

    /// Whether all prices are positive numbers and the volume is none below zero.
    pub fn is_valid(&self) -> bool {
        let prices = [self.open, self.high, self.low, self.close];
        prices.iter().all(|v| v.is_finite() && *v > 0.) && self.volume.is_finite() && self.volume >= 0.
    }
}
