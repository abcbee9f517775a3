//! 45 indicators in their own units: fractions of the price and their products, all close to zero.

use super::market::true_range;
use super::windows::{
    autocovariance, changes, covariance, exponential, greatest, mean, moment, ratio, rolling, wilder, zip,
};
use super::{Columns, Series};

pub(super) fn push(columns: &mut Columns, s: &Series) {
    let close: Vec<f64> = s.bars.iter().map(|b| b.close).collect();
    for k in [1, 5, 20] {
        let values = (0..close.len()).map(|t| s.log_close[t] - s.log_close[t.saturating_sub(k)]).collect();
        columns.push(&format!("log_return_{k}"), &format!("log return over {k} bars"), values);
    }
    columns.push("overnight", "log return from the last close to the open", s.overnight.clone());
    let intraday = s.bars.iter().map(|b| (b.close / b.open).ln()).collect();
    columns.push("intraday", "log return from the open to the close", intraday);
    macd(columns, &close);
    let range = zip(&true_range(s.bars), &close, |r, c| r / c);
    for k in [7, 14, 50] {
        columns.push(&format!("atr_{k}"), &format!("Wilder's mean of true range / close over {k}"), wilder(&range, k));
    }
    variances(columns, s);
    comovements(columns, s);
    for k in [5, 20, 100] {
        let values = changes(&exponential(&s.log_close, k));
        columns.push(&format!("ema_slope_{k}"), &format!("change of the exponential mean of {k} log closes"), values);
    }
    columns.push("acceleration", "change of the log return", changes(&s.returns));
    for k in [50, 200] {
        let values = rolling(&s.log_close, k, |w| w[w.len() - 1] - greatest(w));
        columns.push(&format!("drawdown_{k}"), &format!("ln(close / greatest of {k} closes)"), values);
    }
}

fn macd(columns: &mut Columns, close: &[f64]) {
    let line = |short, long| -> Vec<f64> {
        let gap = zip(&exponential(close, short), &exponential(close, long), |a, b| a - b);
        zip(&gap, close, |g, c| g / c)
    };
    let (slow, fast) = (line(12, 26), line(5, 35));
    let signal = exponential(&slow, 9);
    let histogram = |line: &[f64], k| zip(line, &exponential(line, k), |a, b| a - b);
    columns.push("macd", "(exponential mean of 12 - of 26) / close", slow.clone());
    columns.push("macd_signal", "exponential mean of 9 of macd", signal);
    columns.push("macd_histogram", "macd - macd_signal", histogram(&slow, 9));
    columns.push("macd_fast", "(exponential mean of 5 - of 35) / close", fast.clone());
    columns.push("macd_fast_histogram", "macd_fast - its exponential mean of 5", histogram(&fast, 5));
}

fn variances(columns: &mut Columns, s: &Series) {
    for k in [5, 10, 20, 50, 100] {
        let values = rolling(&s.returns, k, |w| moment(w, 2));
        columns.push(&format!("variance_{k}"), &format!("variance of {k} log returns"), values);
    }
    let of = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
        // Logarithms over the open: high, low, close.
        s.bars.iter().map(|b| f((b.high / b.open).ln(), (b.low / b.open).ln(), (b.close / b.open).ln())).collect()
    };
    let two = 2. * std::f64::consts::LN_2;
    let parkinson = of(&|h, l, _| (h - l).powi(2) / (2. * two));
    let garman_klass = of(&|h, l, c| 0.5 * (h - l).powi(2) - (two - 1.) * c * c);
    let rogers_satchell = of(&|h, l, c| h * (h - c) + l * (l - c));
    for (name, source, series, lengths) in [
        ("parkinson", "Parkinson 1980", &parkinson, &[5, 20, 50][..]),
        ("garman_klass", "Garman and Klass 1980", &garman_klass, &[5, 20]),
        ("rogers_satchell", "Rogers and Satchell 1991", &rogers_satchell, &[10]),
    ] {
        for k in lengths {
            let what = format!("variance a bar from open, high, low, close: mean of {k} ({source})");
            columns.push(&format!("{name}_{k}"), &what, rolling(series, *k, mean));
        }
    }
    for (name, sign) in [("downside", -1.), ("upside", 1.)] {
        let squares: Vec<f64> = s.returns.iter().map(|r| (sign * r).max(0.).powi(2)).collect();
        for k in [20, 50] {
            let what = format!(
                "mean square of {k} log returns, counting those {} only",
                if sign > 0. { "up" } else { "down" }
            );
            columns.push(&format!("{name}_{k}"), &what, rolling(&squares, k, mean));
        }
    }
    for k in [20, 50, 100] {
        let values = rolling(&s.returns, k, |w| moment(w, 3));
        columns.push(&format!("third_moment_{k}"), &format!("third central moment of {k} log returns"), values);
    }
}

fn comovements(columns: &mut Columns, s: &Series) {
    for lag in [1, 2, 3, 5] {
        let values = rolling(&s.returns, 50, |w| autocovariance(w, lag));
        columns.push(
            &format!("autocovariance_{lag}"),
            &format!("autocovariance of 50 log returns at lag {lag}"),
            values,
        );
    }
    let traded = |t: usize| s.bars[t].close * s.bars[t].volume / 1e6;
    let impact: Vec<f64> = (0..s.bars.len()).map(|t| ratio(s.returns[t].abs(), traded(t))).collect();
    for k in [5, 20] {
        let what = format!("mean of |log return| / (close · volume in millions) over {k} (Amihud 2002)");
        columns.push(&format!("illiquidity_{k}"), &what, rolling(&impact, k, mean));
    }
    let volume = changes(&s.log_volume);
    for k in [20, 50] {
        let window = |t: usize| (t + 1).saturating_sub(k)..=t;
        let values = (0..volume.len()).map(|t| covariance(&s.returns[window(t)], &volume[window(t)])).collect();
        let what = format!("covariance of {k} log returns with the changes of ln(volume + 1)");
        columns.push(&format!("return_volume_{k}"), &what, values);
    }
}
