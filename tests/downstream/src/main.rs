//! `downstream forecast WEIGHTS DAYS` forecasts the days after the closes on stdin, one a line, oldest first;
//! `downstream write WEIGHTS CHARACTERS` goes on from the text on stdin;
//! `downstream features WEIGHTS COUNT` prints the first features of the last of the bars on stdin, each a line of open, high,
//! low, close and volume;
//! `downstream image WEIGHTS COUNT` prints the strongest regions of the EEG on stdin, each a line of channels.

use anyhow::{Context, bail};
use candle_core::Device;
use zoo_char_gpt::{CharGpt, Sampling};
use zoo_deepsif::DeepSif;
use zoo_stock_lstm::StockLstm;
use zoo_trading_transformer::{Bar, TradingTransformer, features};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [task, weights, n] = args.as_slice() else {
        bail!("usage: downstream forecast|write|features|image WEIGHTS N < input")
    };
    let input = std::io::read_to_string(std::io::stdin())?;
    match task.as_str() {
        "write" => {
            let sampling = Sampling { tokens: n.parse()?, temperature: 0.5, ..Sampling::default() };
            println!("{}", CharGpt::load(weights.as_ref(), &Device::Cpu)?.generate(&input, &sampling)?);
        }
        "features" => {
            let bars: Vec<Bar> = input.lines().map(bar).collect::<anyhow::Result<_>>()?;
            let model = TradingTransformer::load(weights.as_ref(), &Device::Cpu)?;
            let rows = features::of_bars(&bars, &[]);
            let observation = features::observation(&rows, bars.len().saturating_sub(1), model.bars(), &Device::Cpu)?;
            for value in model.features(&observation)?.flatten_all()?.to_vec1::<f32>()?.iter().take(n.parse()?) {
                println!("{value}");
            }
        }
        "image" => {
            let row = |line: &str| line.split_whitespace().map(str::parse).collect::<Result<Vec<f32>, _>>();
            let eeg = input.lines().map(row).collect::<Result<Vec<_>, _>>()?;
            let image = DeepSif::load(weights.as_ref(), &Device::Cpu)?.image(&eeg)?;
            for (region, strength) in image.strongest().iter().take(n.parse()?) {
                println!("{region} {strength}");
            }
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

fn bar(line: &str) -> anyhow::Result<Bar> {
    let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [open, high, low, close, volume] = numbers[..] else { bail!("five numbers a line, got {line:?}") };
    Ok(Bar { open, high, low, close, volume })
}
