//! Which days come next.

use jiff::civil::{Date, Weekday};
use jiff::{Span, ToSpan};

use super::dates::apart;

/// Days that tell when a market is open.
const RECENT: usize = 260;

/// How far apart the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Days of these weekdays, Monday first.
    Days([bool; 7]),
    Weeks(i32),
    Months(i32),
    Other(i32),
}

impl Step {
    pub(super) fn of(dates: &[Date]) -> Self {
        let recent = &dates[dates.len().saturating_sub(RECENT)..];
        let on = |day: &Date| usize::from(day.weekday().to_monday_zero_offset().unsigned_abs());
        match apart(recent) {
            1..=4 => {
                let mut counts = [0; 7];
                recent.iter().for_each(|d| counts[on(d)] += 1);
                // A session on a Saturday, once in a while, makes no market that is open on Saturdays.
                let most = counts.iter().max().copied().unwrap_or(0);
                Self::Days(counts.map(|n| 10 * n > most))
            }
            days @ (7 | 14) => Self::Weeks(days / 7),
            28..=31 => Self::Months(1),
            89..=92 => Self::Months(3),
            365 | 366 => Self::Months(12),
            days if days > 0 => Self::Other(days),
            _ => Self::Days([true, true, true, true, true, false, false]),
        }
    }

    /// The day after `last` in steps of this kind; the last of the calendar has none.
    fn after(self, last: Date) -> Date {
        let plus = |span: Span| last.checked_add(span).unwrap_or(last);
        match self {
            Self::Days(open) => {
                let is_open = |d: &Date| open[usize::from(d.weekday().to_monday_zero_offset().unsigned_abs())];
                (1..=7).map(|n| plus(n.days())).find(is_open).unwrap_or(last)
            }
            Self::Weeks(n) => plus(n.weeks()),
            // The end of a month is followed by the end of the next.
            Self::Months(n) if last == last.last_of_month() => plus(n.months()).last_of_month(),
            Self::Months(n) => plus(n.months()),
            Self::Other(n) => plus(n.days()),
        }
    }

    /// What is said of days to come.
    fn in_words(self) -> String {
        match self {
            Self::Days(open) if open.iter().all(|o| *o) => {
                "Future dates are every day of the week, as in the file".into()
            }
            Self::Days(open) => {
                let names = [
                    Weekday::Monday,
                    Weekday::Tuesday,
                    Weekday::Wednesday,
                    Weekday::Thursday,
                    Weekday::Friday,
                    Weekday::Saturday,
                    Weekday::Sunday,
                ];
                let closed = names.into_iter().zip(open).filter(|(_, open)| !open).map(|(day, _)| format!("{day:?}s"));
                let closed = closed.collect::<Vec<_>>().join(" and ");
                format!("Future dates skip {closed}, as the file does; holidays are not skipped")
            }
            Self::Weeks(1) => "Future dates are a week apart, as in the file".into(),
            Self::Months(1) => "Future dates are a month apart, as in the file".into(),
            Self::Weeks(_) | Self::Months(_) | Self::Other(_) => "Future dates are as far apart as in the file".into(),
        }
    }
}

/// The `n` dates that follow these, in their steps, and what is said of them.
pub(super) fn next(dates: &[Date], n: usize) -> (Vec<Date>, String) {
    let step = Step::of(dates);
    let Some(&last) = dates.last() else { return (vec![], step.in_words()) };
    (std::iter::successors(Some(last), |d| Some(step.after(*d))).skip(1).take(n).collect(), step.in_words())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_to_come_are_those_on_which_the_file_has_prices() {
        let days = |from: (i16, i8, i8), keep: &dyn Fn(&Date) -> bool, n: usize| -> Vec<Date> {
            let first = Date::constant(from.0, from.1, from.2);
            std::iter::successors(Some(first), |d| d.tomorrow().ok()).filter(keep).take(n).collect()
        };
        let weekday = |d: &Date| d.weekday();
        let after = |dates: &[Date], n: usize| next(dates, n).0.iter().map(Date::to_string).collect::<Vec<_>>();
        let new_york = |d: &Date| !matches!(weekday(d), Weekday::Saturday | Weekday::Sunday);
        let riyadh = |d: &Date| !matches!(weekday(d), Weekday::Friday | Weekday::Saturday);
        // The days until Friday 29 January.
        assert_eq!(after(&days((2021, 1, 1), &new_york, 21), 2), ["2021-02-01", "2021-02-02"]);
        // The last Sunday to Thursday of a month.
        assert_eq!(after(&days((2021, 1, 1), &|_| true, 29), 2), ["2021-01-30", "2021-01-31"]);
        assert_eq!(after(&days((2021, 1, 3), &riyadh, 20), 1), ["2021-01-31"]);
        let weekly = days((2021, 1, 4), &|d| weekday(d) == Weekday::Monday, 30);
        assert_eq!(after(&weekly, 1), ["2021-08-02"]);
        let monthly = days((2021, 1, 1), &|d| d.day() == 1, 12);
        assert_eq!(after(&monthly, 2), ["2022-01-01", "2022-02-01"]);
        let ends = days((2021, 1, 1), &|d| *d == d.last_of_month(), 12);
        assert_eq!(after(&ends, 2), ["2022-01-31", "2022-02-28"]);
        // One session on a Saturday among many days.
        let mut once = days((2021, 1, 1), &new_york, 60);
        once.insert(1, Date::constant(2021, 1, 2));
        assert!(next(&once, 1).1.contains("skip Saturdays and Sundays"), "{}", next(&once, 1).1);
        assert_eq!(after(&[Date::constant(2021, 1, 1)], 1), ["2021-01-04"]);
        assert_eq!(after(&[], 1), Vec::<String>::new());
    }
}
