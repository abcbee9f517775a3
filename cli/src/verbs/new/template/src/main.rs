//! `my-model train my-model --data table.csv`, and every other verb: `my-model --help`.

use my_model::MyTask;
use zoo_cli::{Model, Zoo};

fn main() -> std::process::ExitCode {
    Zoo::new("my-model", env!("CARGO_PKG_VERSION")).model(Model::of::<MyTask>()).main()
}
