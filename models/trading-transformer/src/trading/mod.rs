//! A policy in a market: what it may do, what that costs, how it is trained and judged.
//!
//! After each bar's close the policy chooses an exposure, from what is known by then. It is filled at the next bar's open, with
//! commission and slippage, and held until another is chosen or a stop or target is reached. The reward is ln of the equity's
//! growth from close to close. Borrowing costs nothing, cash earns nothing, and any part of a share can be held.

mod account;
mod backtest;
mod environment;
mod market;
mod oracle;
mod policy;
mod positions;
mod sharpe;
pub mod signal;

/// Bars of a year.
const YEAR: f64 = 252.;

pub use account::{Account, Reason, Rules, START, Trade};
pub(crate) use policy::Policy;
pub(crate) use positions::predict;
pub(crate) use sharpe::reconsider;
