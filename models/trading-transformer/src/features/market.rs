//! 64 features of the market, scaled to [-2, 2].
//!
//! squash(x) = 2 tanh(x / 2). σ is the standard deviation of the last 50 log returns.

use zoo_market::Bar;

use super::windows::{changes, deviation, exponential, greatest, least, mean, ratio, rolling, trend, wilder, zip};
use super::{Columns, Series};

fn squash(x: f64) -> f64 {
    2. * (x / 2.).tanh()
}

pub(super) fn push(columns: &mut Columns, s: &Series) {
    returns(columns, s);
    levels(columns, s);
    oscillators(columns, s);
    directions(columns, s);
    volumes(columns, s);
    candles(columns, s);
    let sigma = |k| rolling(&s.returns, k, deviation);
    for (short, long) in [(5, 50), (20, 100), (10, 200)] {
        let values = zip(&sigma(short), &sigma(long), |a, b| squash((ratio(a, b) + 1e-6).ln()));
        let what = format!("squash(ln(σ of {short} / σ of {long} log returns))");
        columns.push(&format!("volatility_{short}_{long}"), &what, values);
    }
    for k in [10, 20, 50, 100] {
        let values = rolling(&s.log_close, k, |w| 2. * trend(w));
        columns.push(&format!("trend_{k}"), &format!("2 · correlation of the last {k} log closes with time"), values);
    }
}

fn returns(columns: &mut Columns, s: &Series) {
    let scaled = |gap: &dyn Fn(usize) -> f64, k: usize| -> Vec<f64> {
        (0..s.bars.len()).map(|t| squash(ratio(gap(t), s.sigma[t] * (k as f64).sqrt()))).collect()
    };
    for k in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
        let gap = |t: usize| s.log_close[t] - s.log_close[t.saturating_sub(k)];
        let what = format!("squash(log return over {k} bars / (σ √{k}))");
        columns.push(&format!("return_{k}"), &what, scaled(&gap, k));
    }
    let close: Vec<f64> = s.bars.iter().map(|b| b.close).collect();
    for k in [5, 10, 20, 50, 100, 200] {
        let average = rolling(&close, k, mean);
        let what = format!("squash(ln(close / mean of {k} closes) / (σ √{k}))");
        columns.push(&format!("sma_gap_{k}"), &what, scaled(&|t| (close[t] / average[t]).ln(), k));
    }
    for k in [5, 10, 20, 50, 100] {
        let average = exponential(&close, k);
        let what = format!("squash(ln(close / exponential mean of {k}) / (σ √{k}))");
        columns.push(&format!("ema_gap_{k}"), &what, scaled(&|t| (close[t] / average[t]).ln(), k));
    }
}

fn levels(columns: &mut Columns, s: &Series) {
    for k in [10, 20, 50, 100] {
        let last = |w: &[f64]| w[w.len() - 1];
        let values = rolling(&s.log_close, k, |w| squash(ratio(last(w) - mean(w), deviation(w))));
        columns.push(
            &format!("zscore_{k}"),
            &format!("squash((log close - mean of {k}) / their standard deviation)"),
            values,
        );
    }
    let (high, low): (Vec<f64>, Vec<f64>) = s.bars.iter().map(|b| (b.high, b.low)).unzip();
    for k in [5, 10, 14, 20, 50, 100, 200] {
        let (top, bottom) = (rolling(&high, k, greatest), rolling(&low, k, least));
        let place = |t: usize| match top[t] - bottom[t] {
            0. => 0.,
            range => 4. * (s.bars[t].close - bottom[t]) / range - 2.,
        };
        columns.push(
            &format!("channel_{k}"),
            &format!("4 · (close - low of {k}) / (high of {k} - low of {k}) - 2"),
            (0..high.len()).map(place).collect(),
        );
    }
}

fn oscillators(columns: &mut Columns, s: &Series) {
    let (up, down): (Vec<f64>, Vec<f64>) = s.returns.iter().map(|r| (r.max(0.), (-r).max(0.))).unzip();
    for k in [2, 7, 14, 21, 50] {
        let values = zip(&wilder(&up, k), &wilder(&down, k), |u, d| 2. * ratio(u - d, u + d));
        columns.push(
            &format!("rsi_{k}"),
            &format!("(relative strength index of {k} log returns - 50) / 25, Wilder's averages"),
            values,
        );
    }
    let typical: Vec<f64> = s.bars.iter().map(|b| (b.high + b.low + b.close) / 3.).collect();
    let flow = |sign: f64| -> Vec<f64> {
        let moved = changes(&typical);
        (0..typical.len()).map(|t| if moved[t] * sign > 0. { typical[t] * s.bars[t].volume } else { 0. }).collect()
    };
    let (inward, outward) = (flow(1.), flow(-1.));
    for k in [14, 50] {
        let values = zip(&rolling(&inward, k, mean), &rolling(&outward, k, mean), |u, d| 2. * ratio(u - d, u + d));
        columns.push(&format!("money_flow_{k}"), &format!("(money flow index of {k} - 50) / 25"), values);
    }
    let (high, low): (Vec<f64>, Vec<f64>) = s.bars.iter().map(|b| (b.high, b.low)).unzip();
    for k in [14, 25, 50, 100] {
        // Places of the extremes within the window, the later of equal ones.
        let place = |w: &[f64], best: f64| w.iter().rposition(|v| *v == best).unwrap_or_default() as f64;
        let top = rolling(&high, k + 1, |w| place(w, greatest(w)));
        let bottom = rolling(&low, k + 1, |w| place(w, least(w)));
        let values = zip(&top, &bottom, |a, b| 2. * (a - b) / k as f64);
        columns.push(&format!("aroon_{k}"), &format!("(Aroon up - Aroon down of {k}) / 50"), values);
    }
}

/// The true range of each bar.
pub(super) fn true_range(bars: &[Bar]) -> Vec<f64> {
    let of = |t: usize| {
        let (bar, before) = (&bars[t], bars[t.saturating_sub(1)].close);
        if t == 0 { bar.high - bar.low } else { bar.high.max(before) - bar.low.min(before) }
    };
    (0..bars.len()).map(of).collect()
}

fn directions(columns: &mut Columns, s: &Series) {
    let moves = |t: usize| {
        let (bar, before) = (&s.bars[t], &s.bars[t.saturating_sub(1)]);
        let (up, down) = (bar.high - before.high, before.low - bar.low);
        (if up > down { up.max(0.) } else { 0. }, if down > up { down.max(0.) } else { 0. })
    };
    let (up, down): (Vec<f64>, Vec<f64>) = (0..s.bars.len()).map(moves).unzip();
    for k in [14, 28] {
        let direction = zip(&wilder(&up, k), &wilder(&down, k), |u, d| ratio(u - d, u + d));
        let strength = wilder(&direction.iter().map(|v| v.abs()).collect::<Vec<_>>(), k);
        let what = format!("2 · (DI+ - DI-) / (DI+ + DI-) of {k}");
        columns.push(&format!("direction_{k}"), &what, direction.iter().map(|v| 2. * v).collect());
        let values = strength.iter().map(|v| 4. * v - 2.).collect();
        columns.push(&format!("strength_{k}"), &format!("average directional index of {k} / 25 - 2"), values);
    }
}

fn volumes(columns: &mut Columns, s: &Series) {
    let last = |w: &[f64]| w[w.len() - 1];
    for k in [20, 50, 100] {
        let values = rolling(&s.log_volume, k, |w| squash(ratio(last(w) - mean(w), deviation(w))));
        let what = format!("squash((ln(volume + 1) - mean of {k}) / their standard deviation)");
        columns.push(&format!("volume_{k}"), &what, values);
    }
    let values = rolling(&changes(&s.log_volume), 50, |w| squash(ratio(last(w), deviation(w))));
    columns.push("volume_change", "squash(change of ln(volume + 1) / standard deviation of the last 50)", values);
}

fn candles(columns: &mut Columns, s: &Series) {
    let of = |f: &dyn Fn(&Bar, f64) -> f64| -> Vec<f64> { s.bars.iter().map(|b| f(b, b.high - b.low)).collect() };
    columns.push("body", "2 · (close - open) / (high - low)", of(&|b, range| 2. * ratio(b.close - b.open, range)));
    columns.push(
        "upper_shadow",
        "4 · (high - max(open, close)) / (high - low) - 2",
        of(&|b, range| 4. * ratio(b.high - b.open.max(b.close), range) - 2.),
    );
    columns.push(
        "lower_shadow",
        "4 · (min(open, close) - low) / (high - low) - 2",
        of(&|b, range| 4. * ratio(b.open.min(b.close) - b.low, range) - 2.),
    );
    let values = zip(&s.overnight, &s.sigma, |r, sigma| squash(ratio(r, sigma)));
    columns.push("gap", "squash(log return from the last close to the open / σ)", values);
    let range: Vec<f64> = s.bars.iter().map(|b| (b.high / b.low).ln()).collect();
    let values = rolling(&range, 20, |w| squash(((w[w.len() - 1] + 1e-6) / (mean(w) + 1e-6)).ln()));
    columns.push("range", "squash(ln(ln(high / low) / its mean over 20))", values);
    let place = |b: &Bar, range: f64| if range == 0. { 0. } else { 4. * (b.close - b.low) / range - 2. };
    columns.push("close_location", "4 · (close - low) / (high - low) - 2", of(&place));
}
