//! `zoo`: the models of the zoo on the command line.

use std::process::ExitCode;

use zoo_char_gpt::CharTask;
use zoo_cli::{Model, Zoo};
use zoo_deepsif::DeepSifTask;
use zoo_stock_lstm::StockTask;
use zoo_trading_transformer::TradingTask;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps memory that steps take and leave in turn. By default mimalloc gives it back after a second, and the system clears it
/// when it is asked for again: a fifth of a step of 135 million parameters. The environment variable `MIMALLOC_PURGE_DELAY` still
/// decides otherwise.
fn keep_memory() {
    // SAFETY: the function takes any number of an option, and is linked in with the allocator.
    unsafe { mi_option_set_default(PURGE_DELAY, NEVER) }
}

unsafe extern "C" {
    fn mi_option_set_default(option: std::ffi::c_int, value: std::ffi::c_long);
}

/// `mi_option_purge_delay` of mimalloc's versions 2 and 3.
const PURGE_DELAY: std::ffi::c_int = 15;
const NEVER: std::ffi::c_long = -1;

fn main() -> ExitCode {
    keep_memory();
    let zoo = Zoo::new("zoo", env!("CARGO_PKG_VERSION"))
        .commit(option_env!("ZOO_COMMIT"))
        .model(Model::of::<StockTask>().predicts().imports().exports())
        .model(Model::of::<CharTask>().generates().imports().exports())
        .model(Model::of::<TradingTask>().predicts().exports())
        .model(Model::of::<DeepSifTask>().predicts().imports().exports());
    #[cfg(feature = "llama")]
    let zoo = zoo.model(Model::of::<zoo_llama::LlamaTask>().generates().imports().exports().tokenizes());
    zoo.experiments(zoo_trading_transformer::EXPERIMENTS).experiments(zoo_deepsif::EXPERIMENTS).main()
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn mi_option_get(option: std::ffi::c_int) -> std::ffi::c_long;
    }

    #[test]
    fn the_option_is_the_delay_before_memory_is_given_back() {
        // SAFETY: the function takes any number of an option.
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        // Milliseconds: another default means that the options were numbered anew.
        assert_eq!(delay(), 1000);
        keep_memory();
        assert_eq!(delay(), NEVER);
    }
}
