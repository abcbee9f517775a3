//! A network that predicts a column of a table from the others: change data, network and loss to yours.

mod data;
mod network;
mod task;

pub use data::DataSettings;
pub use network::{Config, Network};
pub use task::MyTask;
