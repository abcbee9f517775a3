//! `downstream forecast WEIGHTS DAYS` forecasts the days after the closes on stdin, one a line, oldest first;
//! `downstream write WEIGHTS CHARACTERS` goes on from the text on stdin.

use anyhow::{Context, bail};
use candle_core::Device;
use zoo_char_gpt::{CharGpt, Sampling};
use zoo_stock_lstm::StockLstm;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [task, weights, n] = args.as_slice() else { bail!("usage: downstream forecast|write WEIGHTS N < input") };
    let input = std::io::read_to_string(std::io::stdin())?;
    match task.as_str() {
        "write" => {
            let sampling = Sampling { tokens: n.parse()?, temperature: 0.5, ..Sampling::default() };
            println!("{}", CharGpt::load(weights.as_ref(), &Device::Cpu)?.generate(&input, &sampling)?);
        }
        _ => {
            let closes = input.split_whitespace().map(|text| text.parse().with_context(|| text.to_string()));
            let closes = closes.collect::<anyhow::Result<Vec<f64>>>()?;
            for close in StockLstm::load(weights.as_ref(), &Device::Cpu)?.predict_ahead(&closes, n.parse()?)? {
                println!("{close:.4}");
            }
        }
    }
    Ok(())
}
