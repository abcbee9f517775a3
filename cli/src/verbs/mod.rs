//! The verbs, a file each: its arguments, and what it does.

pub(crate) mod adapt;
pub(crate) mod attempt;
pub(crate) mod bench;
pub(crate) mod bench_ops;
pub(crate) mod bench_ranks;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
#[cfg(feature = "hub")]
pub(crate) mod hub;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod new;
pub(crate) mod params;
pub(crate) mod predict;
pub(crate) mod replay;
pub(crate) mod report;
pub(crate) mod reproduce;
pub(crate) mod sheet;
pub(crate) mod tokenizer;
pub(crate) mod train;
pub(crate) mod tune;
#[cfg(feature = "watch")]
pub(crate) mod watch;
