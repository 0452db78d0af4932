//! Bars with their spread, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::figures::{Plot, Section};
use crate::stats::Spread;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 380;
/// Room for the peers' names.
const NAMES: u32 = 190;

/// A peer's colour: the same in every plot of a report. Malloc and its double are grey, ours blue and green.
pub fn colour(peer: &str) -> RGBColor {
    const REST: [RGBColor; 6] = [
        RGBColor(0x4e, 0x79, 0xa7),
        RGBColor(0xe1, 0x57, 0x59),
        RGBColor(0x76, 0xb7, 0xb2),
        RGBColor(0xed, 0xc9, 0x48),
        RGBColor(0xb0, 0x7a, 0xa1),
        RGBColor(0x9c, 0x75, 0x5f),
    ];
    match peer {
        "malloc" => RGBColor(0x6b, 0x6b, 0x6b),
        "malloc again" => RGBColor(0xb8, 0xb8, 0xb8),
        "file" => RGBColor(0xd6, 0x9a, 0x5b),
        "nginx" => RGBColor(0xc4, 0x4e, 0x52),
        "objmapper memory" => RGBColor(0x8f, 0xb8, 0xde),
        "objmapper memory zc" => RGBColor(0x1f, 0x5f, 0xa8),
        "objmapper disk" => RGBColor(0x9f, 0xd3, 0x9f),
        "objmapper disk zc" => RGBColor(0x2a, 0x80, 0x3b),
        "objmapper socket" => RGBColor(0xc3, 0xb1, 0xe1),
        "objmapper socket zc" => RGBColor(0x6a, 0x4c, 0x93),
        other => REST[other.bytes().map(usize::from).sum::<usize>() % REST.len()],
    }
}

/// The plot as an `<svg>` element; `None` if there is nothing to draw.
pub fn svg(section: &Section, plot: &Plot) -> Result<Option<String>> {
    let works: Vec<&str> = section.works().into_iter().filter(|w| w.contains(plot.works.as_str())).collect();
    let peers: Vec<&str> = section
        .peers()
        .into_iter()
        .filter(|peer| works.iter().any(|work| section.spread(work, peer, plot.figure).is_some()))
        .collect();
    let spreads = works.iter().flat_map(|w| peers.iter().filter_map(|p| section.spread(w, p, plot.figure)));
    let highest = spreads.map(|s| s.high).fold(0.0, f64::max);
    if highest <= 0.0 {
        return Ok(None);
    }
    let mut text = String::new();
    draw(&mut text, section, plot, &works, &peers, highest).map_err(|why| anyhow!("plot \"{}\": {why}", plot.title))?;
    Ok(Some(text))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(text: &mut String, section: &Section, plot: &Plot, works: &[&str], peers: &[&str], highest: f64) -> Drawn {
    let spread = |work: &str, peer: &str| section.spread(work, peer, plot.figure);
    let root = SVGBackend::with_string(text, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    // Names stand beside the bars, and never before them.
    let (bars, names) = root.split_horizontally(WIDTH - NAMES);
    let mut chart = ChartBuilder::on(&bars)
        .caption(format!("{} ({})", plot.title, plot.figure.title()), ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..works.len() as f64, 0.0..highest * 1.08)?;
    let name = |x: &f64| works.get(x.floor() as usize).filter(|_| (x.fract() - 0.5).abs() < 0.01).map_or("", |w| w);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        // Twice as many marks as works, so that there is one in the middle of each.
        .x_labels(works.len() * 2 + 1)
        .x_label_formatter(&|x| name(x).to_owned())
        .y_label_formatter(&|y| plot.figure.show(*y))
        .label_style(("sans-serif", 13))
        .draw()?;
    let width = 0.8 / peers.len() as f64;
    for (p, peer) in peers.iter().enumerate() {
        let colour = colour(peer);
        let place = |w: usize| w as f64 + 0.1 + width * p as f64;
        let heights: Vec<(f64, Spread)> =
            works.iter().enumerate().filter_map(|(w, work)| Some((place(w), spread(work, peer)?))).collect();
        let rectangles =
            heights.iter().map(|(x, s)| Rectangle::new([(*x, 0.0), (x + width * 0.92, s.median)], colour.filled()));
        chart.draw_series(rectangles)?;
        let whiskers = heights.iter().map(|(x, s)| {
            let middle = x + width * 0.46;
            PathElement::new([(middle, s.low), (middle, s.high)], BLACK.mix(0.6))
        });
        chart.draw_series(whiskers)?;
        let y = 50 + 20 * p as i32;
        names.draw(&Rectangle::new([(0, y), (12, y + 12)], colour.filled()))?;
        names.draw(&Text::new(peer.to_string(), (20, y), ("sans-serif", 13)))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figure;
    use crate::report::sample;

    #[test]
    fn a_bar_for_each_peer_and_its_name() {
        let report = sample::report();
        let section = &report.sections[0];
        let svg = svg(section, &section.plots[0]).unwrap().unwrap();
        for part in ["<svg", "</svg>", "CPU time", "malloc", "objmapper", "1m", "#6B6B6B"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
    }

    #[test]
    fn nothing_to_draw() {
        let report = sample::report();
        let none = Plot { title: "x".into(), figure: Figure::Fds, works: String::new() };
        assert_eq!(svg(&report.sections[0], &none).unwrap(), None);
        let none = Plot { title: "x".into(), figure: Figure::CpuPerGb, works: "no such work".into() };
        assert_eq!(svg(&report.sections[0], &none).unwrap(), None);
    }
}
