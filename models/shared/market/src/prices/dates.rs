//! Dates in whatever form a file has them.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// The forms that are understood: those of `strftime`, and seconds or milliseconds since 1970. A time of day after an
/// ISO date is passed over.
const FORMS: [&str; 16] = [
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%Y%m%d",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m-%d-%Y",
    "%d-%m-%Y",
    "%d.%m.%Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    SECONDS,
    MILLISECONDS,
];
const SECONDS: &str = "seconds since 1970";
const MILLISECONDS: &str = "milliseconds since 1970";

fn parse(text: &str, form: &str) -> Option<Date> {
    let plausible = |date: &Date| (1800..=2200).contains(&date.year());
    if let SECONDS | MILLISECONDS = form {
        // Eight digits are a date, and neither unit makes sense of the other's days.
        let number: i64 = text.parse().ok().filter(|n: &i64| n.unsigned_abs() > 100_000_000)?;
        let seconds = if form == SECONDS { number } else { number.div_euclid(1000) };
        return Some(Timestamp::from_second(seconds).ok()?.to_zoned(TimeZone::UTC).date()).filter(plausible);
    }
    // 2020-01-02 00:00:00-05:00, 2020-01-02T00:00
    let day = match text.as_bytes().get(10) {
        Some(b' ' | b'T') if form.starts_with("%Y") && form.len() == 8 && text.is_char_boundary(10) => &text[..10],
        _ => text,
    };
    // A year of two digits is not one of the first century.
    let date = strtime::parse(form, day).ok()?.to_date().ok().filter(plausible)?;
    if form.ends_with("%y") && date > Timestamp::now().to_zoned(TimeZone::UTC).date() {
        return date.with().year(date.year() - 100).build().ok();
    }
    Some(date)
}

/// The one form that the dates of a file have.
///
/// # Errors
/// Two forms fit and disagree, as in a file of which every date is like 03/04/2008.
pub(super) fn form(dates: &[&str]) -> Result<&'static str, String> {
    // A bad row must not decide: the form that reads most dates is the file's.
    let fitting = |form: &'static str| (dates.iter().filter(|d| parse(d, form).is_some()).count(), form);
    let counts: Vec<_> = FORMS.into_iter().map(fitting).collect();
    let most = counts.iter().map(|c| c.0).max().unwrap_or(0);
    let best: Vec<&'static str> = counts.into_iter().filter(|c| c.0 == most).map(|c| c.1).collect();
    // What can be seconds is: the same numbers as milliseconds all fall into 1970.
    let best = if best.contains(&SECONDS) { vec![SECONDS] } else { best };
    let disagree = |d: &&&str| best.iter().any(|f| parse(d, f) != parse(d, best[0]));
    match dates.iter().find(disagree) {
        Some(date) if most > 0 => Err(format!(
            "dates such as {date} could be {}: write them as 2008-10-14",
            best.iter()
                .map(|f| f.replace("%m", "month").replace("%d", "day").replace("%Y", "year"))
                .collect::<Vec<_>>()
                .join(" or ")
        )),
        _ => Ok(best[0]),
    }
}

/// A date in the file's form.
pub(super) fn date(text: &str, form: &str) -> Option<Date> {
    parse(text, form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_the_one_form_that_fits_the_file() {
        let expected = Date::constant(2008, 10, 14);
        for text in [
            "2008-10-14",
            "2008/10/14",
            "20081014",
            "10/14/2008",
            "14/10/2008",
            "14.10.2008",
            "Oct 14, 2008",
            "October 14, 2008",
            "14 Oct 2008",
            "14-Oct-2008",
            "14-Oct-08",
            "2008-10-14 00:00:00-04:00",
            "2008-10-14T00:00:00Z",
            "1223942400",
            "1223942400000",
        ] {
            assert_eq!(form(&[text]).map(|f| date(text, f)), Ok(Some(expected)), "{text}");
        }
        // One unit serves a whole file, before 1973 too.
        let old = ["31536000000", "1223942400000"];
        assert_eq!(form(&old).map(|f| date(old[0], f)), Ok(Some(Date::constant(1971, 1, 1))));
        assert_eq!(date("02-Jan-62", "%d-%b-%y"), Some(Date::constant(1962, 1, 2)));
        // One day beyond the twelfth settles the whole file.
        assert_eq!(form(&["03/04/2008", "13/04/2008"]), Ok("%d/%m/%Y"));
        assert_eq!(form(&["03/04/2008", "04/13/2008"]), Ok("%m/%d/%Y"));
        let message = form(&["03/04/2008", "05/06/2008"]).unwrap_err();
        assert!(message.starts_with("dates such as 03/04/2008 could be month/day/year or day/month/year"), "{message}");
        // The same day either way is no question.
        assert!(form(&["03/03/2008"]).is_ok());
        assert_eq!(form(&["soon", "2008-10-14"]), Ok("%Y-%m-%d"));
        assert_eq!(date("soon", "%Y-%m-%d"), None);
        for text in ["", "é", "2008-10-1é", "99999999999999999999", "12"] {
            assert_eq!(form(&[text]).ok().and_then(|f| date(text, f)), None, "{text}");
        }
    }
}
