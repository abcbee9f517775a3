//! Daily prices from a file or a simulation.

mod prices;
mod simulation;

pub use prices::{Days, read_csv};
pub use simulation::simulate;
