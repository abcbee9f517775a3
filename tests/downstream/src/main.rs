//! Forecasts the next days of the closes on stdin, one a line, oldest first: `downstream WEIGHTS DAYS < closes`.

use anyhow::Context;
use candle_core::Device;
use zoo_stock_lstm::StockLstm;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (weights, days) = args.next().zip(args.next()).context("usage: downstream WEIGHTS DAYS < closes")?;
    let forecaster = StockLstm::load(weights.as_ref(), &Device::Cpu)?;
    let closes: Vec<f64> = std::io::read_to_string(std::io::stdin())?
        .split_whitespace()
        .map(|text| text.parse().with_context(|| text.to_string()))
        .collect::<anyhow::Result<_>>()?;
    for close in forecaster.predict_ahead(&closes, days.parse()?)? {
        println!("{close:.4}");
    }
    Ok(())
}
