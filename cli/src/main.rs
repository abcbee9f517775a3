//! `zoo`: trains, evaluates and inspects the models of the zoo.

mod adapt;
mod args;
mod bench;
mod bench_ops;
mod convert;
mod curves;
mod doctor;
mod eval;
mod fetch;
mod generate;
mod heat;
mod hub;
mod inspect;
mod list;
mod output;
mod params;
mod plot;
mod predict;
mod progress;
mod registry;
mod report;
mod reproduce;
mod spread;
mod system;
mod tensorboard;
mod train;
mod tune;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Command, Zoo};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // candle's own element-wise threads spin between operations and take the cores from rayon's, which run the
        // kernels and the matrix products.
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    #[cfg(unix)]
    {
        // A file that may grow no further is an error to report, not a signal to die of. Failing only costs that.
        let flag = std::sync::Arc::default();
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, flag);
    }
    // The library for MATLAB's files panics on damaged ones; what it says is caught and said in one line.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|l| l.file().contains("matrw")) {
            usual(info);
        }
    }));
    // This thread takes part in rayon's work: kernels start without waking another. Failing only costs that.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    let zoo = match Zoo::try_parse() {
        Ok(zoo) => zoo,
        Err(e) => return output::refuse_call(&e),
    };
    match run(zoo.command) {
        Ok(code) => code,
        Err(e) => output::fail(&e),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // A wrong ZOO_SIMD is refused before any work.
    zoo_layers::ops::glue::simd::level().map_err(|e| zoo_training::Error::Usage(output::first_line(&e)))?;
    match command {
        Command::List { json } => list::run(json)?,
        Command::Params(args) => args.common.entry()?.params(&args)?,
        Command::Train(args) => return args.common.entry()?.train(&args),
        Command::Tune(args) => return registry::find(&args.model)?.tune(&args),
        Command::Eval(args) => registry::find(&args.model)?.eval(&args)?,
        Command::Predict(args) => registry::find(&args.model)?.predict(&args)?,
        Command::Generate(args) => return registry::find(&args.model)?.generate(&args),
        Command::Report(args) => report::run(&args)?,
        Command::Reproduce(args) => return reproduce::run(&args),
        Command::Doctor(args) => doctor::run(&args)?,
        Command::Convert(args) => return convert::run(&args),
        Command::Inspect(args) => inspect::inspect(&args)?,
        Command::Diff(args) => return inspect::diff(&args),
        Command::Verify(args) => inspect::verify(&args)?,
        Command::Average(args) => inspect::average(&args)?,
        Command::Pull(args) => hub::pull(&args)?,
        Command::Push(args) => hub::push(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Zoo::command(), "zoo", &mut script);
            output::print(&String::from_utf8_lossy(&script));
        }
    }
    Ok(ExitCode::SUCCESS)
}
