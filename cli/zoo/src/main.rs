//! `zoo`: the models of the zoo on the command line.

use std::process::ExitCode;

use zoo_char_gpt::CharTask;
use zoo_cli::{Model, Zoo};
use zoo_deepsif::DeepSifTask;
use zoo_stock_lstm::StockTask;
use zoo_trading_transformer::TradingTask;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let zoo = Zoo::new("zoo", env!("CARGO_PKG_VERSION"))
        .model(Model::of::<StockTask>().predicts().imports())
        .model(Model::of::<CharTask>().generates().imports())
        .model(Model::of::<TradingTask>().predicts())
        .model(Model::of::<DeepSifTask>().predicts().imports());
    #[cfg(feature = "llama")]
    let zoo = zoo.model(Model::of::<zoo_llama::LlamaTask>().generates().imports());
    zoo.experiments(zoo_trading_transformer::EXPERIMENTS).experiments(zoo_deepsif::EXPERIMENTS).main()
}
