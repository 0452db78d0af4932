//! The report as one HTML file that needs nothing else.

use std::fmt::Write;

use anyhow::Result;

use super::{Report, cells, plot};
use crate::figures::{Section, significant};

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 0.7em 0; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 2px 9px; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { border-bottom: 2px solid #999; } td:nth-child(1), td:nth-child(2), th:nth-child(1), th:nth-child(2) { text-align: left; }
.targets td:last-child { font-weight: 600; } .met { color: #1a7f37; } .missed { color: #b3261e; } .close { color: #9a6700; }
.first td { border-top: 1px solid #999; } .ratio { color: #555; } .about, .note { color: #555; max-width: 60em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(540px, 1fr)); gap: 8px; }
.plots svg { width: 100%; height: auto; } summary { cursor: pointer; color: #1f5fa8; }
dl { display: grid; grid-template-columns: max-content auto; gap: 1px 14px; font-size: 13px; } dt { color: #555; } dd { margin: 0; }
";

/// The page.
pub fn page(report: &Report) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>objmapper for Varnish: benchmark</title>"
    )?;
    writeln!(out, "<style>{STYLE}</style><h1>objmapper for Varnish: benchmark</h1>")?;
    writeln!(
        out,
        "<p class=about>Bars are medians of all rounds, whiskers the lowest and the highest round. Compare peers within one \
         plot: they took turns in one run. What lies closer together than <i>malloc</i> and <i>malloc again</i>, which are \
         the same, is noise. <i>zc</i>: delivered without a copy.</p>"
    )?;
    for remark in &report.remarks {
        writeln!(out, "<p class=note>Note: {}</p>", escaped(remark))?;
    }
    targets(&mut out, report)?;
    for section in &report.sections {
        part(&mut out, section)?;
    }
    writeln!(out, "<h2>The machine and the programs</h2><dl>")?;
    for (name, text) in &report.facts.lines {
        writeln!(out, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(text))?;
    }
    writeln!(out, "</dl></html>")?;
    Ok(out)
}

fn targets(out: &mut String, report: &Report) -> Result<()> {
    if report.verdicts.is_empty() {
        return Ok(());
    }
    let met = report.verdicts.iter().filter(|v| v.is_met()).count();
    writeln!(out, "<h2>Targets: {met} of {} met</h2><table class=targets>", report.verdicts.len())?;
    writeln!(out, "<tr><th>target<th>bound<th>measured<th>lowest to highest round<th>verdict</tr>")?;
    for v in &report.verdicts {
        let class = match (v.is_met(), v.is_close()) {
            (_, true) => "close",
            (true, false) => "met",
            (false, false) => "missed",
        };
        writeln!(
            out,
            "<tr><td>{}<td>{}<td>{}{}<td>{} to {}<td class={class}>{}</tr>",
            escaped(&v.target),
            v.limit_text(),
            significant(v.measured.median),
            escaped(&v.unit),
            significant(v.measured.low),
            significant(v.measured.high),
            v.words()
        )?;
    }
    writeln!(out, "</table>")?;
    Ok(())
}

fn part(out: &mut String, section: &Section) -> Result<()> {
    writeln!(
        out,
        "<h2 id=\"{}\">{}</h2><p class=about>{}</p>",
        section.key,
        escaped(&section.title),
        escaped(&section.about)
    )?;
    for remark in &section.remarks {
        writeln!(out, "<p class=note>Note: {}</p>", escaped(remark))?;
    }
    writeln!(out, "<div class=plots>")?;
    for drawn in &section.plots {
        if let Some(svg) = plot::svg(section, drawn)? {
            writeln!(out, "<div>{svg}</div>")?;
        }
    }
    writeln!(out, "</div>")?;
    if section.rows.is_empty() {
        return Ok(());
    }
    // A long table would hide the plots of the next part.
    let open = if section.rows.len() <= 16 { " open" } else { "" };
    writeln!(out, "<details{open}><summary>Figures</summary><table><tr><th>work<th>peer")?;
    for figure in &section.columns {
        write!(out, "<th>{}", figure.title())?;
        if section.ratios.contains(figure) {
            write!(out, "<th class=ratio>to {}", escaped(section.baseline.as_deref().unwrap_or_default()))?;
        }
    }
    writeln!(out, "</tr>")?;
    let mut before = "";
    for row in &section.rows {
        let class = if row.work == before { "" } else { " class=first" };
        before = &row.work;
        write!(out, "<tr{class}><td>{}<td>{}", escaped(&row.work), escaped(&row.peer))?;
        for cell in cells(section, &row.work, &row.peer) {
            write!(out, "<td>{}", cell.value)?;
            if let Some(ratio) = cell.ratio {
                write!(out, "<td class=ratio>{ratio}")?;
            }
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table></details>")?;
    for row in &section.rows {
        for remark in &row.remarks {
            writeln!(out, "<p class=note>{}, {}: {}</p>", escaped(&row.work), escaped(&row.peer), escaped(remark))?;
        }
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn golden_parts() {
        let page = page(&sample::report()).unwrap();
        for part in [
            "<h2>Targets: 1 of 1 met</h2>",
            "<tr><td>CPU &lt;per&gt; GB<td>≤ 0.5x<td>0.500x<td>0.400 to 0.600<td class=close>met, but the rounds disagree</tr>",
            "<h2 id=\"hits\">Hits</h2><p class=about>What &amp; how.</p>",
            "<tr><td>1m<td>objmapper<td>4.00<td>0.100<td class=ratio>0.50 (0.50–0.50)</tr>",
            "<p class=note>1m, objmapper: 3 requests were misses</p>",
            "<dt>CPU</dt><dd>2 x &lt;fast&gt; &amp; &quot;cheap&quot;</dd>",
            "</svg>",
        ] {
            assert!(page.contains(part), "no {part}");
        }
        assert!(
            !page.contains("http://") || page.contains("xmlns=\"http://www.w3.org/2000/svg\""),
            "the page loads nothing"
        );
    }
}
