//! The report as text.

use super::{Report, cells};
use crate::figures::Section;

/// The whole report.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for (name, value) in &report.facts.lines {
        out.push_str(&format!("{name}: {value}\n"));
    }
    for remark in &report.remarks {
        out.push_str(&format!("note: {remark}\n"));
    }
    for section in &report.sections {
        out.push_str(&section_text(section));
    }
    if !report.verdicts.is_empty() {
        let mut table = vec![row(["target", "bound", "measured", "lowest", "highest", "verdict"])];
        for v in &report.verdicts {
            let number = crate::figures::significant;
            let measured = [v.measured.median, v.measured.low, v.measured.high].map(number);
            let [median, low, high] = measured.each_ref().map(String::as_str);
            table.push(row([&v.target, &v.limit_text(), median, low, high, v.words()]));
        }
        out.push_str(&format!("\nTargets\n{}", align(&table)));
    }
    out
}

/// One part of it.
pub fn section_text(section: &Section) -> String {
    let mut out = format!("\n{}\n", section.title);
    let mut head = vec!["work".to_owned(), "peer".to_owned()];
    for figure in &section.columns {
        head.push(figure.title().to_owned());
        if section.ratios.contains(figure) {
            head.push(format!("to {}", section.baseline.as_deref().unwrap_or_default()));
        }
    }
    let mut table = vec![head];
    for r in &section.rows {
        let mut line = vec![r.work.clone(), r.peer.clone()];
        for cell in cells(section, &r.work, &r.peer) {
            line.push(cell.value);
            line.extend(cell.ratio);
        }
        table.push(line);
    }
    if table.len() > 1 {
        out.push_str(&align(&table));
    }
    for r in &section.rows {
        for remark in &r.remarks {
            out.push_str(&format!("note: {}, {}: {remark}\n", r.work, r.peer));
        }
    }
    for remark in &section.remarks {
        out.push_str(&format!("note: {remark}\n"));
    }
    out
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Columns of one width; the first two are words and stand to the left.
fn align(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| table.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in table {
        let mut text = String::new();
        for (c, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let width = *width;
            match c {
                0 | 1 => text.push_str(&format!("{cell:<width$}  ")),
                _ => text.push_str(&format!("{cell:>width$}  ")),
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn golden() {
        let expected = "\
CPU: 2 x <fast> & \"cheap\"
note: nginx left out

Hits
work  peer       GB/s  CPU s/GB         to malloc
1m    malloc     2.00     0.200
1m    objmapper  4.00     0.100  0.50 (0.50–0.50)
note: 1m, objmapper: 3 requests were misses
note: a remark

Targets
target        bound   measured  lowest  highest                       verdict
CPU <per> GB  ≤ 0.5x     0.500   0.400    0.600  met, but the rounds disagree
";
        assert_eq!(text(&sample::report()), expected);
    }
}
