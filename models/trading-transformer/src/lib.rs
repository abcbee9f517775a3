//! A transformer that extracts features from 20 bars of a market and its position.

pub mod features;
