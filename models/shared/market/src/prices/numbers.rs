//! Numbers as people and vendors write them.

/// Which of comma and point separates the whole part from the fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decimal {
    Point,
    Comma,
}

impl Decimal {
    fn mark(self) -> char {
        match self {
            Self::Point => '.',
            Self::Comma => ',',
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Point => Self::Comma,
            Self::Comma => Self::Point,
        }
    }
}

/// What stands for a number that is not there.
const NONE: [&str; 14] = ["-", "--", "---", "–", "—", "n/a", "n.a.", "n.d.", "na", "nan", "null", "none", ".", "#n/a"];

/// Whether a field says that there is no number.
pub(super) fn is_missing(text: &str) -> bool {
    text.is_empty() || NONE.iter().any(|n| text.eq_ignore_ascii_case(n))
}

/// Factors behind a number, the longer names first.
const UNITS: [(&str, f64); 16] = [
    ("mio.", 1e6),
    ("mio", 1e6),
    ("mrd.", 1e9),
    ("mrd", 1e9),
    ("mln", 1e6),
    ("bln", 1e9),
    ("bn", 1e9),
    ("mn", 1e6),
    ("万", 1e4),
    ("萬", 1e4),
    ("亿", 1e8),
    ("億", 1e8),
    ("k", 1e3),
    ("m", 1e6),
    ("b", 1e9),
    ("t", 1e12),
];

/// Names of currencies that stand before or behind a price, and signs of no meaning here.
const CURRENCIES: [&str; 24] = [
    "usd", "eur", "gbp", "chf", "jpy", "cny", "inr", "krw", "cad", "aud", "hkd", "sek", "nok", "dkk", "pln", "brl",
    "us$", "hk$", "r$", "a$", "c$", "rs.", "rs", "kr",
];

fn is_sign(c: char) -> bool {
    matches!(c, '$' | '€' | '£' | '¥' | '￥' | '₹' | '₩' | '₽' | '₿' | '¢' | '%')
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}'
}

/// A number's digits and separators, its sign, and what they are multiplied by: without quotes of spreadsheets, currencies,
/// units and blanks around them.
fn bare(text: &str) -> (&str, f64) {
    // Excel's way to keep a text: ="12.3", and its mark of one: '12.3
    let mut text =
        text.strip_prefix('=').unwrap_or(text).trim_matches('"').trim_start_matches('\'').trim_matches(is_blank);
    let mut factor = 1.;
    loop {
        let before = text;
        text = text.trim_matches(|c| is_sign(c) || is_blank(c));
        for currency in CURRENCIES {
            let n = currency.len();
            if text.get(..n).is_some_and(|t| t.eq_ignore_ascii_case(currency)) {
                text = &text[n..];
            }
            if text.len() >= n && text.get(text.len() - n..).is_some_and(|t| t.eq_ignore_ascii_case(currency)) {
                text = &text[..text.len() - n];
            }
        }
        if factor == 1. {
            let unit = UNITS.iter().find(|(name, _)| {
                let at = text.len().checked_sub(name.len());
                at.is_some_and(|at| at > 0 && text.get(at..).is_some_and(|t| t.eq_ignore_ascii_case(name)))
            });
            if let Some((name, by)) = unit {
                (text, factor) = (&text[..text.len() - name.len()], *by);
            }
        }
        if text == before {
            return (text, factor);
        }
    }
}

/// Whether a field is a number, whatever separates its fraction.
pub(super) fn is_number(text: &str) -> bool {
    [Decimal::Point, Decimal::Comma].into_iter().any(|decimal| parse(text, decimal).is_some())
}

/// Whether a price could be one of a bond future, in points and 32nds of them with an eighth of a 32nd: `100'185`.
pub(super) fn is_in_32nds(text: &str) -> bool {
    let Some((whole, parts)) = text.split_once('\'') else { return false };
    let plain = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let eighth = parts.ends_with(['0', '2', '5', '7']);
    plain(whole) && plain(parts) && parts.len() == 3 && eighth && parts[..2].parse::<u8>().is_ok_and(|n| n < 32)
}

/// The price in a field: a number without a factor, as letters behind prices mean other things.
pub(super) fn price(text: &str, decimal: Decimal) -> Option<f64> {
    let (_, factor) = bare(text);
    parse(text, decimal).filter(|v| factor == 1. && v.is_finite() && *v > 0.)
}

/// Separators of thousands that never are anything else.
fn is_group(c: char) -> bool {
    matches!(c, '\'' | '’' | '‘' | '´' | '_' | '٬') || is_blank(c)
}

/// What a column of numbers says of its separators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    point: usize,
    comma: usize,
    /// Numbers such as 1,234 and 1.234, which say nothing.
    open_comma: usize,
    open_point: usize,
}

impl Evidence {
    /// Adds what a number says.
    pub(super) fn add(&mut self, text: &str) {
        if !is_number(text) {
            return;
        }
        let (digits, _) = bare(text);
        if !digits.contains([',', '.']) || digits.contains(['e', 'E']) && digits.parse::<f64>().is_err() {
            return;
        }
        let count = |mark: char| digits.matches(mark).count();
        match (digits.rfind('.'), digits.rfind(',')) {
            (Some(point), Some(comma)) if point > comma => self.point += 1,
            (Some(_), Some(_)) => self.comma += 1,
            (Some(_), None) if count('.') > 1 => self.comma += 1,
            (None, Some(_)) if count(',') > 1 => self.point += 1,
            (Some(at), None) => match settles(digits, at) {
                true => self.point += 1,
                false => self.open_point += 1,
            },
            (None, Some(at)) => match settles(digits, at) {
                true => self.comma += 1,
                false => self.open_comma += 1,
            },
            (None, None) => {}
        }
    }

    /// The decimal separator that most numbers speak for, or `None` if none does.
    pub(super) fn decimal(&self) -> Option<Decimal> {
        match () {
            () if self.point + self.comma == 0 => None,
            () if self.point >= self.comma => Some(Decimal::Point),
            () => Some(Decimal::Comma),
        }
    }

    /// The mark of the numbers that may have thousands or a fraction, if there are any and no other number decides.
    pub(super) fn open(&self) -> Option<char> {
        match (self.decimal(), self.open_comma, self.open_point) {
            (None, 1.., _) => Some(','),
            (None, 0, 1..) => Some('.'),
            _ => None,
        }
    }
}

/// Whether the only separator, at `at`, must be a decimal one: not three digits behind it, or more than three or a zero before it.
fn settles(digits: &str, at: usize) -> bool {
    let whole = digits[..at].trim_start_matches(['-', '+']);
    let fraction = digits[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
    let exponent = digits[at + 1..].contains(['e', 'E']);
    fraction != 3 || exponent || whole.is_empty() || whole.starts_with('0') || whole.len() > 3
}

/// The number in a field: groups of thousands (or of hundreds behind the first thousand, as in India) by comma, point, apostrophe
/// or blank, strictly; a currency or `%` around it, a factor such as K or Mio. behind it. `None` if it is none.
pub(super) fn parse(text: &str, decimal: Decimal) -> Option<f64> {
    let (digits, factor) = bare(text);
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => (-1., rest),
        None => (1., digits.strip_prefix('+').unwrap_or(digits)),
    };
    let (whole, fraction) = digits.split_once(decimal.mark()).unwrap_or((digits, ""));
    let thousands = decimal.other().mark();
    let separates = |c: char| c == thousands || is_group(c);
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let groups: Vec<&str> = whole.split(separates).collect();
    if let [first, middle @ .., last] = &groups[..] {
        let size = if middle.iter().all(|g| g.len() == 3) { 3 } else { 2 };
        let fits = !first.is_empty()
            && !first.starts_with('0')
            && first.len() <= size
            && last.len() == 3
            && middle.iter().all(|g| g.len() == size)
            && groups.iter().all(|g| plain(g));
        // One separator alone: 1 234, not 1 2345; blanks within a text of words are none.
        let one = whole.chars().filter(|c| separates(*c)).collect::<Vec<_>>();
        if !fits || one.iter().any(|c| *c != one[0]) {
            return None;
        }
    }
    if !fraction.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'e' | b'E' | b'+' | b'-')) {
        return None;
    }
    let whole: String = groups.concat();
    let number = if fraction.is_empty() { whole } else { format!("{whole}.{fraction}") };
    // What begins like a number: not inf or nan.
    let value: f64 = number.parse().ok().filter(|_| number.starts_with(|c: char| c.is_ascii_digit() || c == '.'))?;
    Some(sign * value * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for (text, number) in [
            ("1234.5", 1234.5),
            ("1,234.50", 1234.5),
            ("$1,234.50", 1234.5),
            ("USD 12.5", 12.5),
            ("12.5 USD", 12.5),
            ("₹1,23,456.70", 123_456.7),
            ("1,23,45,678", 12_345_678.),
            ("9'045.90", 9045.9),
            ("9’045.90", 9045.9),
            ("9\u{202f}045.90", 9045.9),
            ("1\u{a0}234\u{a0}567", 1_234_567.),
            ("4.25%", 4.25),
            ("70.7M", 70.7e6),
            ("1.2 Mio.", 1.2e6),
            ("3.5bn", 3.5e9),
            ("8.1万", 81_000.),
            ("1.5e3", 1500.),
            ("1.23E+08", 1.23e8),
            ("=\"12.5\"", 12.5),
            ("+7", 7.),
            ("-37.63", -37.63),
            (".5", 0.5),
        ] {
            assert_eq!(parse(text, Decimal::Point), Some(number), "{text}");
        }
        for (text, number) in
            [("1.234,56", 1234.56), ("0,950", 0.95), ("12,5 €", 12.5), ("1 234,5", 1234.5), ("1.234.567", 1_234_567.)]
        {
            assert_eq!(parse(text, Decimal::Comma), Some(number), "{text}");
        }
        for text in [
            "",
            "abc",
            "inf",
            "NaN",
            "1,23",
            "1234,567",
            "0,950",
            "1,2345.0",
            "12 34",
            "1 2.5",
            "1..2",
            "1,234'567",
            "K",
        ] {
            assert_eq!(parse(text, Decimal::Point), None, "{text}");
        }
        assert!(is_in_32nds("100'185") && !is_in_32nds("9'045.90") && !is_in_32nds("9'945"));
        assert_eq!((price("12.5 EUR", Decimal::Point), price("12.30 b", Decimal::Point)), (Some(12.5), None));
    }

    #[test]
    fn separators_are_settled_by_what_can_be_only_one_thing() {
        let of = |texts: &[&str]| {
            let mut evidence = Evidence::default();
            texts.iter().for_each(|t| evidence.add(t));
            (evidence.decimal(), evidence.open())
        };
        assert_eq!(of(&["1,234.50", "7,000"]), (Some(Decimal::Point), None));
        assert_eq!(of(&["1.098,90"]), (Some(Decimal::Comma), None));
        assert_eq!(of(&["0,950", "1,048"]), (Some(Decimal::Comma), None));
        assert_eq!(of(&["99,90"]), (Some(Decimal::Comma), None));
        assert_eq!(of(&["103,870", "99,900"]), (None, Some(',')));
        assert_eq!(of(&["11.056", "11.080"]), (None, Some('.')));
        assert_eq!(of(&["1,779,240"]), (Some(Decimal::Point), None));
        assert_eq!(of(&["12", "abc", ""]), (None, None));
        assert_eq!(of(&["11.056", "n.a.", "v1.2"]), (None, Some('.')));
    }
}
