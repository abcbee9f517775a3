//! An evaluation as a page: metrics beside baselines, what they say, pictures and the first rows of the tables.

use std::fmt::Write;

use zoo_training::{Evaluation, Metrics};

/// What the page is called.
pub(crate) const PAGE: &str = "page.html";
/// Rows of a table that are shown; its file has all.
const ROWS: usize = 12;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:24px}h1{font-size:20px}h2{font-size:16px}\
    table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:4px 10px;border-bottom:1px solid #ddd}\
    th:first-child,td:first-child{text-align:left}img{max-width:100%}section{overflow-x:auto}@media(prefers-color-scheme:dark){body{\
    background:#12161c;color:#e6e9ee}img{background:#fff}}";

/// Text as markup shows it, whatever it holds.
fn text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '&' => shown.push_str("&amp;"),
            '"' => shown.push_str("&quot;"),
            c => shown.push(c),
        }
    }
    shown
}

fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let row = |cells: &[String], tag: &str| -> String {
        let cells: String = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", text(c))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = rows.iter().map(|cells| row(cells, "td")).collect();
    format!("<table>\n{}{body}</table>\n", row(header, "th"))
}

/// The page; `pictures` are the names of the files that lie beside it.
pub(crate) fn page(title: &str, evaluation: &Evaluation, pictures: &[String]) -> String {
    let Evaluation { metrics, baselines, remarks, tables, pictures: drawn, samples } = evaluation;
    let mut header = vec![String::new()];
    header.extend(metrics.iter().map(|(name, _)| name.replace('_', " ")));
    let row = |name: &str, metrics: &Metrics| -> Vec<String> {
        std::iter::once(name.replace('_', " ")).chain(metrics.iter().map(|(_, v)| format!("{v:.4}"))).collect()
    };
    let mut rows = vec![row("the model", metrics)];
    rows.extend(baselines.iter().map(|(name, metrics)| row(name, metrics)));
    let title = text(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<h1>{title}</h1>\n<section>{samples} samples\n{}</section>\n<ul>\n",
        table(&header, &rows)
    );
    // Writing to a string does not fail.
    remarks.iter().for_each(|remark| page.push_str(&format!("<li>{}</li>\n", text(remark))));
    page.push_str("</ul>\n");
    for (name, picture) in pictures.iter().zip(drawn) {
        let _ = writeln!(page, "<h2>{0}</h2>\n<img src=\"{name}\" alt=\"{0}\">", text(&picture.title));
    }
    for t in tables {
        let (shown, all) = (t.rows.len().min(ROWS), t.rows.len());
        let rest = if shown < all { format!(", the first {shown} of {all} rows") } else { String::new() };
        let name = text(&t.name.replace('_', " "));
        let file = text(&t.name);
        let _ = write!(
            page,
            "<h2>{name}{rest} (<a href=\"{file}.csv\">{file}.csv</a>)</h2>\n<section>{}</section>\n",
            table(&t.header, &t.rows[..shown])
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

#[cfg(test)]
mod tests {
    use zoo_training::Table;

    use super::*;

    #[test]
    fn a_page_shows_text_as_text() {
        let rows = vec![vec!["<b>&\"".to_string()]; 50];
        let evaluation = Evaluation {
            remarks: vec!["<script>".into()],
            tables: vec![Table { name: "trades".into(), header: vec!["symbol".into()], rows }],
            ..Evaluation::default()
        };
        let page = page("a < b", &evaluation, &[]);
        assert!(page.contains("<h1>a &lt; b</h1>") && page.contains("<li>&lt;script&gt;</li>"), "{page}");
        assert!(page.contains("<td>&lt;b&gt;&amp;&quot;</td>") && page.contains("the first 12 of 50 rows"), "{page}");
        assert_eq!(page.matches("<td>&lt;b").count(), 12);
    }
}
