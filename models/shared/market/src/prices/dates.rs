//! Dates in whatever form a file has them.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// The order of day, month and year in dates of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ymd,
    Dmy,
    Mdy,
}

impl Order {
    const ALL: [Self; 3] = [Self::Ymd, Self::Mdy, Self::Dmy];

    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Ymd => ("year/month/day", "%Y/%m/%d"),
            Self::Dmy => ("day/month/year", "%d/%m/%Y"),
            Self::Mdy => ("month/day/year", "%m/%d/%Y"),
        }
    }
}

/// How the dates of a file are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In this order where they do not say it themselves.
    Parts(Order),
    /// By a form of `strftime`.
    Strftime(String),
    /// Days since 30 December 1899.
    Excel,
}

/// A day, and the time of it if the text has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) day: Date,
    pub(super) time: Option<Time>,
}

/// What a text says of a date, before the order is known.
#[derive(Debug, PartialEq)]
enum Parts<'a> {
    /// Clear by itself.
    Date(Date),
    /// Three numbers, as they stand.
    Numbers([&'a str; 3]),
}

/// Names of months and their beginnings, separated by |, in the languages that price files come in, without accents.
const MONTHS: [&str; 12] = [
    "jan|january|ocak|oca|januari|janv|januar|janvier|enero|ene|gen|gennaio|janeiro|stycznia|sty|янв",
    "feb|february|subat|sub|februari|pebruari|febr|februar|fev|fevr|fevrier|febrero|febbraio|fevereiro|lutego|lut|фев",
    "mar|march|mart|maret|mars|marz|maerz|mrz|maart|mrt|marzo|marco|marca|мар",
    "apr|april|nisan|nis|avr|avril|abr|abril|aprile|kwietnia|kwi|апр",
    "may|mayis|mai|mei|maj|mayo|maggio|mag|maio|maja|мая|май",
    "jun|june|haziran|haz|juni|juin|junio|giu|giugno|junho|czerwca|cze|июн",
    "jul|july|temmuz|tem|juli|juil|juillet|julio|lug|luglio|julho|lipca|lip|июл",
    "aug|august|augusti|agustos|agu|agt|agustus|august|aout|augustus|ago|agosto|sierpnia|sie|авг",
    "sep|september|eylul|eyl|sept|septembre|septiembre|set|settembre|setembro|wrzesnia|wrz|сен",
    "oct|october|ekim|eki|okt|octobre|oktober|octubre|ott|ottobre|out|outubro|pazdziernika|paz|окт",
    "nov|november|kasim|kas|novembre|noviembre|novembro|listopada|lis|ноя",
    "dec|december|aralik|ara|des|desember|dez|dezember|decembre|dic|diciembre|dicembre|dezembro|grudnia|gru|дек",
];
/// Words of a date that say nothing new, separated by |.
const IDLE: &str = "mon|tue|tues|wed|thu|thur|thurs|fri|sat|sun|monday|tuesday|wednesday|thursday|friday|saturday|sunday|mo|di|mi|do|fr|sa\
                    |so|st|nd|rd|th|de|of|t|z|utc|gmt|est|edt|am|pm|lun|mer|mie|jeu|jue|gio|ven|vie|sam|sab|dim|dom";

/// Letters without accents, in lower case.
pub(super) fn folded(text: &str) -> String {
    let fold = |c: char| match c {
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ą' => 'a',
        'ç' | 'ć' | 'č' => 'c',
        'è' | 'é' | 'ê' | 'ë' | 'ę' | 'ě' => 'e',
        'ì' | 'í' | 'î' | 'ï' | 'ı' => 'i',
        'ñ' | 'ń' => 'n',
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' => 'o',
        'ù' | 'ú' | 'û' | 'ü' => 'u',
        'ś' | 'š' | 'ş' => 's',
        'ź' | 'ż' | 'ž' => 'z',
        'ł' => 'l',
        'ğ' => 'g',
        'ё' => 'е',
        c => c,
    };
    // A dotted capital I becomes two characters.
    text.chars().flat_map(char::to_lowercase).filter(|c| *c != '\u{307}').map(fold).collect()
}

/// The number of a month by its name.
fn month(word: &str) -> Option<i8> {
    let found = MONTHS.iter().position(|names| names.split('|').any(|n| n == word));
    // Words of many endings, such as those of Russian, begin alike.
    let begins = || MONTHS.iter().position(|names| names.split('|').any(|n| !n.is_ascii() && word.starts_with(n)));
    found.or_else(begins).map(|m| m as i8 + 1)
}

fn plausible(date: &Date) -> bool {
    (1800..=2200).contains(&date.year())
}

fn civil(year: i16, month: i8, day: i8) -> Option<Date> {
    Date::new(year, month, day).ok().filter(plausible)
}

/// 93000 and 0930 as a time, 0 as midnight.
fn clock(digits: &str) -> Option<Time> {
    let number: u32 = digits.parse().ok()?;
    let (h, m, s) = match digits.len() {
        5.. => (number / 10_000, number / 100 % 100, number % 100),
        _ => (number / 100, number % 100, 0),
    };
    Time::new(h as i8, m as i8, s as i8, 0).ok().filter(|_| digits.len() <= 6 && h < 24)
}

/// A time of day: 16:00, 4:00:00 PM, 09:30:00.123, or 93000.
pub(super) fn time(text: &str) -> Option<Time> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return clock(text);
    }
    let (at, end) = colons(text)?;
    (at == 0).then(|| of_clock(&text[..end], &text[end..]))?
}

/// Where a time with colons begins and ends.
fn colons(text: &str) -> Option<(usize, usize)> {
    let first = text.find(':')?;
    let digits = text[..first].bytes().rev().take_while(u8::is_ascii_digit).count();
    if !(1..=2).contains(&digits) {
        return None;
    }
    let behind =
        text[first..].find(|c: char| !c.is_ascii_digit() && !matches!(c, ':' | '.')).unwrap_or(text.len() - first);
    Some((first - digits, first + behind))
}

/// Hours, minutes and seconds with what stands behind them.
fn of_clock(text: &str, behind: &str) -> Option<Time> {
    let mut numbers = text.split(':').map(|n| n.split('.').next().unwrap_or_default().parse::<i8>());
    let (mut h, m) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let s = numbers.next().transpose().ok()?.unwrap_or(0);
    let word: String = folded(behind).chars().filter(|c| c.is_alphanumeric()).take(2).collect();
    match word.as_str() {
        "pm" if h < 12 => h += 12,
        "am" if h == 12 => h = 0,
        _ => {}
    }
    // The end of a day is of that day.
    if (h, m, s) == (24, 0, 0) { Time::new(23, 59, 59, 0).ok() } else { Time::new(h, m, s.min(59), 0).ok() }
}

/// Seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by their size.
fn since_1970(text: &str) -> Option<DateTime> {
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    // Eight digits are a date.
    let number: i64 = whole.parse().ok().filter(|n: &i64| n.unsigned_abs() > 100_000_000)?;
    let fits = |unit: &i64| number.unsigned_abs() / (*unit as u64) < 7_260_000_000;
    let unit = [1, 1_000, 1_000_000, 1_000_000_000].into_iter().find(fits)?;
    let moment = Timestamp::from_second(number.div_euclid(unit)).ok()?;
    // Prices of years to come are none: these digits are something else.
    const YEARS: i64 = 5 * 366 * 86_400;
    (moment.as_second() < Timestamp::now().as_second() + YEARS).then(|| moment.to_zoned(TimeZone::UTC).datetime())
}

/// What a text says: its date, or the numbers of one, and the time.
fn parts(text: &str) -> Option<(Parts<'_>, Option<Time>)> {
    // Excel's way to keep a text: ="2019-01-02"
    let text = text.strip_prefix('=').unwrap_or(text).trim_matches(['"', '\'']).trim();
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let eight = |t: &str| civil(t[..4].parse().ok()?, t[4..6].parse().ok()?, t[6..8].parse().ok()?);
    if digits {
        let stamp =
            |clock: Option<Time>| Some((eight(text).filter(|d| (1990..=2100).contains(&d.year()))?, Some(clock?)));
        let compact = match text.len() {
            8 => Some((eight(text)?, None)),
            // Hours, minutes, seconds, milliseconds behind eight digits.
            10 if since_1970(text).is_none() => stamp(clock(&format!("{}00", &text[8..]))),
            12 | 14 => stamp(clock(&text[8..])),
            17 => stamp(clock(&text[8..14])),
            _ => None,
        };
        if let Some((date, time)) = compact {
            return Some((Parts::Date(date), time));
        }
    }
    if let Some(moment) = since_1970(text) {
        return Some((Parts::Date(moment.date()), Some(moment.time())));
    }
    let (before, behind, time) = match colons(text) {
        Some((at, end)) => (&text[..at], &text[end..], Some(of_clock(&text[at..end], &text[end..])?)),
        None => (text, "", None),
    };
    // A time may stand before the date; between its month and its year, as in C; or behind it, with a zone.
    let before_it = before.bytes().all(|b| !b.is_ascii_digit());
    let (mut numbers, named) = tokens(if before_it { behind } else { before })?;
    if named.is_some() && numbers.len() == 1 {
        numbers.extend(behind.split_whitespace().rfind(|t| t.len() == 4 && t.parse::<u16>().is_ok()));
    }
    match (&numbers[..], named, time) {
        // 20190102 and 20190102 093000
        ([date], None, time) if date.len() == 8 => Some((Parts::Date(eight(date)?), time)),
        ([date, of_day], None, None) if date.len() == 8 => Some((Parts::Date(eight(date)?), Some(clock(of_day)?))),
        _ => finish(&numbers, named, time),
    }
}

/// The numbers of a text, and its month if that has a name; `None` if there is a word that dates do not have.
fn tokens(text: &str) -> Option<(Vec<&str>, Option<i8>)> {
    let (mut numbers, mut named, mut rest) = (vec![], None, text);
    let (mut weekday, mut first) = (false, false);
    while let Some(c) = rest.chars().next() {
        let kind = |c: char| (c.is_ascii_digit(), c.is_alphabetic());
        let (token, after) = rest.split_at(rest.find(|d| kind(d) != kind(c)).unwrap_or(rest.len()));
        rest = after;
        match kind(c) {
            (true, _) => numbers.push(token),
            (_, true) => {
                let word = folded(token);
                let idle = IDLE.split('|').any(|w| w == word) || token.chars().all(|c| "年月日号년월일".contains(c));
                match month(&word) {
                    Some(month) if named.is_none() => {
                        named = Some(month);
                        first = numbers.is_empty();
                    }
                    // What began the date was a Tuesday in French or Spanish: mar. 2 janv.
                    Some(month) if first => (named, first) = (Some(month), false),
                    _ if idle => {}
                    // A day of the week, in whatever language.
                    _ if numbers.is_empty() && token.chars().count() > 3 => weekday = true,
                    _ => return None,
                }
            }
            _ => {}
        }
    }
    let whole = numbers.len() + usize::from(named.is_some()) == 3;
    (whole || !weekday).then_some((numbers, named))
}

/// The date of numbers, of which a month may have a name.
fn finish<'a>(numbers: &[&'a str], named: Option<i8>, time: Option<Time>) -> Option<(Parts<'a>, Option<Time>)> {
    let date = ordered_named;
    let long = |t: &str| t.len() == 4;
    let parts = match (named, numbers) {
        (Some(month), [year, day]) if long(year) => Parts::Date(date(year, month, day)?),
        (Some(month), [day, year]) => Parts::Date(date(year, month, day)?),
        (Some(month), [year]) if long(year) => Parts::Date(date(year, month, "1")?),
        (None, &[a, b, c]) => Parts::Numbers([a, b, c]),
        // A month alone is that of a monthly file.
        (None, [year, month]) if long(year) && month.len() == 2 => Parts::Date(date(year, month.parse().ok()?, "1")?),
        (None, [month, year]) if long(year) && month.len() == 2 => Parts::Date(date(year, month.parse().ok()?, "1")?),
        _ => return None,
    };
    Some((parts, time))
}

/// A year of four digits, of two (not in the future), or of three since 1911, as Taiwan counts.
fn of_year(text: &str, month: i8, day: &str) -> Option<i16> {
    let year: i16 = text.parse().ok()?;
    match text.len() {
        4 => Some(year),
        3 => Some(year + 1911),
        1 | 2 => {
            let late = 2000 + year;
            let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
            let date = Date::new(late, month, day.parse().ok()?).ok()?;
            Some(if date > today { late - 100 } else { late })
        }
        _ => None,
    }
}

fn ordered_named(year: &str, month: i8, day: &str) -> Option<Date> {
    civil(of_year(year, month, day)?, month, day.parse().ok()?)
}

fn ordered([a, b, c]: [&str; 3], order: Order) -> Option<Date> {
    let (year, month, day) = match order {
        Order::Ymd => (a, b, c),
        Order::Dmy => (c, b, a),
        Order::Mdy => (c, a, b),
    };
    let short = |t: &str| t.len() <= 2;
    if !short(month) || !short(day) {
        return None;
    }
    let month: i8 = month.parse().ok()?;
    civil(of_year(year, month, day)?, month, day.parse().ok()?)
}

/// A moment in the file's form.
pub(super) fn moment(text: &str, form: &Form) -> Option<Moment> {
    match form {
        Form::Excel => {
            let days: f64 = text.parse().ok().filter(|d| (1. ..110_000.).contains(d))?;
            let day = Date::constant(1899, 12, 30).checked_add(jiff::Span::new().days(days.floor() as i64)).ok()?;
            let seconds = ((days - days.floor()) * 86_400.).round() as i64;
            let time = Time::midnight().checked_add(jiff::Span::new().seconds(seconds.min(86_399))).ok()?;
            Some(Moment { day, time: (seconds > 0).then_some(time) })
        }
        Form::Strftime(form) => {
            let parsed = strtime::parse(form, text).ok().or_else(|| {
                // A time of day behind a form without one is passed over, as it is elsewhere.
                let (parsed, n) = strtime::BrokenDownTime::parse_prefix(form, text).ok()?;
                let rest = text.get(n..)?;
                (parsed.hour().is_none() && rest.starts_with([' ', 'T'])).then_some(parsed)
            })?;
            let day = parsed.to_date().ok().filter(plausible)?;
            Some(Moment { day, time: parsed.hour().and_then(|_| parsed.to_time().ok()) })
        }
        Form::Parts(order) => {
            let (parts, time) = parts(text)?;
            let day = match parts {
                Parts::Date(date) => date,
                Parts::Numbers(numbers) => ordered(numbers, *order)?,
            };
            Some(Moment { day, time })
        }
    }
}

/// The day of a text in each order.
fn days(text: &str) -> [Option<Date>; 3] {
    match parts(text) {
        None => [None; 3],
        Some((Parts::Date(date), _)) => [Some(date); 3],
        Some((Parts::Numbers(numbers), _)) => Order::ALL.map(|order| ordered(numbers, order)),
    }
}

/// Whether a field could be a date: in the form that is asked for, or by itself.
pub(super) fn looks_like(text: &str, form: Option<&Form>) -> bool {
    form.map_or_else(|| days(text).iter().any(Option::is_some), |form| moment(text, form).is_some())
}

/// Days that Excel shows as numbers: those of 1954 to 2064.
pub(super) fn is_serial(text: &str) -> bool {
    text.parse::<f64>().is_ok_and(|n| (20_000. ..60_000.).contains(&n)) && !text.contains('-')
}

/// Whether days rise or fall throughout.
pub(super) fn in_order(days: &[Date]) -> bool {
    days.windows(2).all(|w| w[0] <= w[1]) || days.windows(2).all(|w| w[0] >= w[1])
}

/// How many days neighbours lie apart, the middle one; 0 where there are none.
pub(super) fn apart(days: &[Date]) -> i32 {
    let mut apart: Vec<i32> = days.windows(2).filter_map(|w| Some(w[1].since(w[0]).ok()?.get_days().abs())).collect();
    apart.sort_unstable();
    apart.get(apart.len() / 2).copied().unwrap_or(0)
}

/// The one form that the dates of a file have.
///
/// # Errors
/// Two forms fit and disagree, as in a file of which every date is like 03/04/2008.
pub(super) fn form(dates: &[&str]) -> Result<Form, String> {
    let read: Vec<[Option<Date>; 3]> = dates.iter().map(|d| days(d)).collect();
    // A bad row must not decide: the order that reads most dates is the file's.
    let counts = [0, 1, 2].map(|k| read.iter().filter(|r| r[k].is_some()).count());
    let most = counts.into_iter().max().unwrap_or(0);
    let mut best: Vec<usize> = (0..3).filter(|k| counts[*k] == most).collect();
    if most > 0 && best.len() > 1 && read.iter().any(|r| best.iter().any(|k| r[*k] != r[best[0]])) {
        // Days go one way in a file that is read right.
        let sorted = |k: &usize| in_order(&read.iter().filter_map(|r| r[*k]).collect::<Vec<_>>());
        let way: Vec<usize> = best.iter().copied().filter(sorted).collect();
        if !way.is_empty() && most > 2 {
            best = way;
        }
        // Rows that are years apart are days of which the first number is none of a year.
        let days = |k: usize| read.iter().filter_map(|r| r[k]).collect::<Vec<_>>();
        if best.len() > 1 && best[0] == 0 && apart(&days(0)) > 200 && best[1..].iter().all(|k| apart(&days(*k)) < 100) {
            best.remove(0);
        }
    }
    // 19-Jan-02 is taken for the nineteenth, unless that puts the rows out of order and the other way does not.
    let exchanged = |text: &&str| {
        let (numbers, month) = tokens(text)?;
        match (&numbers[..], month) {
            (&[year, day], Some(month)) => ordered_named(year, month, day),
            _ => None,
        }
    };
    let turned: Option<Vec<Date>> = if dates.len() > 2 { dates.iter().map(exchanged).collect() } else { None };
    let taken: Vec<Date> = read.iter().filter_map(|r| r[best[0]]).collect();
    let better = |days: &Vec<Date>| in_order(days) && (!in_order(&taken) || apart(&taken) > 200 && apart(days) < 100);
    if turned.as_ref().is_some_and(better) {
        return Err(format!("dates such as {} begin with the year: say so by their form (%y-%b-%d)", dates[0]));
    }
    let disagree = |r: &&[Option<Date>; 3]| best.iter().any(|k| r[*k] != r[best[0]]);
    match read.iter().position(|r| disagree(&r)) {
        Some(at) if most > 0 => {
            let names = best.iter().map(|k| Order::ALL[*k].name());
            let (words, forms): (Vec<_>, Vec<_>) = names.unzip();
            Err(format!(
                "dates such as {} could be {}: say which by their form ({})",
                dates[at],
                words.join(" or "),
                forms.join(" or ")
            ))
        }
        _ => Ok(Form::Parts(Order::ALL[best[0]])),
    }
}

/// The form that is asked for by name.
///
/// # Errors
/// It is none of `strftime`'s.
pub(super) fn named(form: &str) -> Result<Form, String> {
    if form.eq_ignore_ascii_case("excel") {
        return Ok(Form::Excel);
    }
    // What a form writes of a known moment, it must read again.
    let example = DateTime::constant(2008, 10, 14, 9, 30, 0, 0);
    let wrong = || format!("{form:?} is no form of dates, such as %d/%m/%Y or %Y-%m-%d %H:%M, or excel");
    let written = strtime::format(form, example).map_err(|_| wrong())?;
    let form = Form::Strftime(form.into());
    moment(&written, &form).filter(|m| m.day == example.date()).map(|_| form).ok_or_else(wrong)
}

/// Whether the days would be in order if month and day were exchanged where both are below 13: what Excel does to
/// dates in the order of another country.
pub(super) fn turned(days: &[Date]) -> bool {
    let exchanged = |d: &Date| Date::new(d.year(), d.day(), d.month()).unwrap_or(*d);
    !in_order(days) && in_order(&days.iter().map(exchanged).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Option<Date> {
        moment(text, &form(&[text]).ok()?).map(|m| m.day)
    }

    #[test]
    fn dates_are_read_in_the_one_form_that_fits_the_file() {
        let expected = Date::constant(2008, 10, 14);
        for text in [
            "2008-10-14",
            "2008/10/14",
            "2008.10.14",
            "20081014",
            "10/14/2008",
            "14/10/2008",
            "14.10.2008",
            "Oct 14, 2008",
            "October 14, 2008",
            "14 Oct 2008",
            "14-Oct-2008",
            "14-OCT-08",
            "14OCT2008",
            "2008-Oct-14",
            "Tue, Oct 14, 2008",
            "Tuesday, October 14th, 2008",
            "14. Okt. 2008",
            "14. Oktober 2008",
            "14 octobre 2008",
            "14 октября 2008",
            "2008年10月14日",
            "2008- 10- 14",
            "2008. 10. 14.",
            "97/10/14",
            "2008-10-14 00:00:00-04:00",
            "2008-10-14T00:00:00Z",
            "2008-10-14T21:00:00.000+0000",
            "2008-10-14 00:00:00 UTC",
            "14/10/2008 16:00:00",
            "10/14/2008 4:00:00 PM",
            "14.10.2008 17:30",
            "16:00 14/10/2008",
            "Tue Oct 14 2008 00:00:00 GMT+0200 (CEST)",
            "Tue Oct 14 16:00:00 2008",
            "20081014 093000",
            "20081014 09:30:00",
            "20081014093000",
            "20081014T093000",
            "20081014093000123",
            "Dienstag, 14. Oktober 2008",
            "Mittwoch 14/10/2008",
            "14 Ekim 2008",
            "mar. 14 oct. 2008",
            "mer 14 ott 2008",
            "=\"2008-10-14\"",
            "1223942400",
            "1223942400.0",
            "1223942400000",
            "1223942400000000",
            "1223942400000000000",
        ] {
            let expected = if text.starts_with("97/") { Date::constant(1997, 10, 14) } else { expected };
            assert_eq!(day(text), Some(expected), "{text}");
        }
        assert_eq!(day("097/10/14"), Some(expected));
        assert_eq!(day("2008-10"), Some(Date::constant(2008, 10, 1)));
        assert_eq!(day("Oct 2008"), Some(Date::constant(2008, 10, 1)));
        // Units are told apart row by row, before 1973 too.
        let old = ["31536000000", "1223942400000", "1735689600000000"];
        let days = old.map(|d| moment(d, &form(&old).unwrap()).map(|m| m.day));
        assert_eq!(days, [(1971, 1, 1), (2008, 10, 14), (2025, 1, 1)].map(|(y, m, d)| Some(Date::constant(y, m, d))));
        assert_eq!(day("02-Jan-62"), Some(Date::constant(1962, 1, 2)));
        for text in [
            "",
            "é",
            "2008-10-1é",
            "99999999999999999999",
            "12",
            "2008",
            "soon",
            "K (May 13)",
            "1.5",
            "43467",
            "########",
            "a:b",
            "2100000000",
            "Week 2",
        ] {
            assert_eq!(day(text), None, "{text}");
        }
    }

    #[test]
    fn one_day_beyond_the_twelfth_or_the_order_of_rows_settles_a_file() {
        let order = |dates: &[&str]| form(dates);
        assert_eq!(order(&["03/04/2008", "13/04/2008"]), Ok(Form::Parts(Order::Dmy)));
        assert_eq!(order(&["03/04/2008", "04/13/2008"]), Ok(Form::Parts(Order::Mdy)));
        let message = order(&["03/04/2008", "05/06/2008"]).unwrap_err();
        assert!(message.starts_with("dates such as 03/04/2008 could be month/day/year or day/month/year"), "{message}");
        // Rows that only one order puts into the order of time.
        assert_eq!(order(&["03/04/2008", "04/04/2008", "07/04/2008", "02/05/2008"]), Ok(Form::Parts(Order::Dmy)));
        assert_eq!(order(&["30/01/19", "31/01/19", "01/02/19"]), Ok(Form::Parts(Order::Dmy)));
        let message = order(&["19-Jan-30", "19-Jan-31", "19-Feb-01", "19-Feb-02"]).unwrap_err();
        assert!(message.contains("begin with the year"), "{message}");
        assert!(order(&["02-Jan-19", "03-Jan-19", "04-Feb-19"]).is_ok());
        // The same day either way is no question.
        assert!(order(&["03/03/2008"]).is_ok());
        assert_eq!(order(&["soon", "2008-10-14"]).map(|f| moment("2008-10-14", &f).is_some()), Ok(true));
    }

    #[test]
    fn a_form_can_be_named() -> Result<(), String> {
        let read = |form: &str, text: &str| Ok::<_, String>(moment(text, &named(form)?).map(|m| m.day));
        assert_eq!(read("%d/%m/%Y", "03/04/2008")?, Some(Date::constant(2008, 4, 3)));
        assert_eq!(read("%d%m%Y", "03042008")?, Some(Date::constant(2008, 4, 3)));
        assert_eq!(read("%d/%m/%Y", "03/04/2008 16:00")?, Some(Date::constant(2008, 4, 3)));
        assert_eq!(read("excel", "43467")?, Some(Date::constant(2019, 1, 2)));
        for (form, text) in [("%d/%m/%Y", "soon"), ("%d/%m/%y", "03/04/2008"), ("%d/%m/%Y %H:%M", "03/04/2008 16:00 x")]
        {
            assert_eq!(read(form, text)?, None, "{form}");
        }
        let time = |form: &str, text: &str| Ok::<_, String>(moment(text, &named(form)?).and_then(|m| m.time));
        assert_eq!(time("%d/%m/%Y", "03/04/2008")?, None);
        assert_eq!(time("%d/%m/%Y %H:%M", "03/04/2008 16:00")?, Some(Time::constant(16, 0, 0, 0)));
        for form in ["%Q", "dd/mm/yyyy", "%H:%M", ""] {
            assert!(named(form).unwrap_err().contains("is no form of dates"), "{form}");
        }
        Ok(())
    }

    #[test]
    fn times_are_read_beside_dates() {
        let at = |h, m, s| Some(Time::constant(h, m, s, 0));
        for (text, expected) in [
            ("16:00", at(16, 0, 0)),
            ("4:00:00 PM", at(16, 0, 0)),
            ("4:00 p. m.", at(16, 0, 0)),
            ("093000", at(9, 30, 0)),
            ("0", at(0, 0, 0)),
            ("x", None),
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
        let moment = |text: &str| moment(text, &form(&[text]).unwrap()).and_then(|m| m.time);
        assert_eq!(moment("2019-01-02 09:30:00-05:00"), at(9, 30, 0));
        assert_eq!(moment("20190102 093000"), at(9, 30, 0));
        assert_eq!(moment("2019-01-02"), None);
    }

    #[test]
    fn dates_that_excel_turned_are_recognised() {
        let days = |of: &[(i8, i8)]| of.iter().map(|(m, d)| Date::constant(2019, *m, *d)).collect::<Vec<_>>();
        assert!(turned(&days(&[(2, 1), (3, 1), (12, 1), (1, 13), (1, 14)])));
        assert!(!turned(&days(&[(1, 2), (1, 3)])));
        assert!(!turned(&days(&[(5, 20), (1, 3), (4, 20)])));
    }
}
