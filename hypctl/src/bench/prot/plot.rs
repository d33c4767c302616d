//! The numbers as a picture: SVG, by crate `plotters`.
//!
//! Left, instructions a page; right, time relative to the first method, on the most CPUs. Above, write-protection; below,
//! harvests. Over the size of the range, RAM in pages; all axes are logarithmic.

use std::path::Path;

use hyp_abi::measure::{METHODS, Method, SIZES, Work};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::cells::name;
use super::{Leaf, Measured};

/// Size of the picture, in pixels.
const SIZE: (u32, u32) = (1200, 900);
/// One colour a method, told apart with any eyesight (the palette of Okabe and Ito).
const COLOURS: [RGBColor; METHODS.len()] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(0, 158, 115),
];

/// What is told of each method, over the size of the range.
struct Graph {
    title: String,
    unit: &'static str,
    /// For each method, points of pages and what there is to tell.
    lines: Vec<Vec<(f64, f64)>>,
}

type Failure = Box<dyn std::error::Error>;

/// Draws what was measured into a file.
///
/// # Errors
/// What went wrong, in words.
pub(super) fn draw(path: &Path, cpu: &str, settings: &[Measured]) -> Result<(), String> {
    let picture = render(cpu, settings).map_err(|error| error.to_string())?;
    crate::atomic::write(path, picture.as_bytes()).map_err(|error| error.to_string())
}

fn render(cpu: &str, settings: &[Measured]) -> Result<String, Failure> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let title = format!("What it takes to change protections: cpu {cpu} of QEMU, 4 KiB pages");
        let body = root.titled(&title, ("sans-serif", 22))?;
        for (area, graph) in body.split_evenly((2, 2)).iter().zip(graphs(settings)) {
            graph.draw(area)?;
        }
        root.present()?;
    }
    Ok(picture)
}

fn graphs(settings: &[Measured]) -> Vec<Graph> {
    let pages = || settings.iter().filter(|one| one.leaf == Leaf::Page);
    let (Some(counted), Some(timed)) = (pages().next(), pages().next_back()) else {
        return Vec::new();
    };
    let lines = |value: &dyn Fn(&'static str, u64) -> Option<f64>| {
        let line = |method: Method| {
            let point = |&pages: &u64| Some((pages as f64, value(method.name, pages)?));
            SIZES.iter().filter_map(point).collect()
        };
        METHODS.into_iter().map(line).collect()
    };
    let of = |work: Work| {
        let work = name(work);
        let instructions = |method, pages| Some(counted.counted(work, method, pages)?.each());
        let time = |method, pages| Some(timed.timed(work, method, pages)?.ratio.median);
        let cpus = timed.cpus;
        [
            Graph {
                title: format!("{work}: instructions a page"),
                unit: "instructions a page",
                lines: lines(&instructions),
            },
            Graph {
                title: format!("{work}: time, {cpus} CPUs"),
                unit: "of the first method's time",
                lines: lines(&time),
            },
        ]
    };
    [Work::WriteProtect, Work::Harvest].into_iter().flat_map(of).collect()
}

impl Graph {
    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Failure> {
        let points = || self.lines.iter().flatten();
        let bounds = |part: fn(&(f64, f64)) -> f64| {
            let low = points().map(part).fold(f64::INFINITY, f64::min);
            let high = points().map(part).fold(0.0, f64::max);
            if low.is_finite() { (low / 1.3)..(high * 1.3) } else { 0.5..2.0 }
        };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(62)
            .build_cartesian_2d(bounds(|at| at.0).log_scale(), bounds(|at| at.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("pages")
            .y_desc(self.unit)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for ((line, method), colour) in self.lines.iter().zip(METHODS).zip(COLOURS) {
            chart
                .draw_series(
                    LineSeries::new(line.iter().copied(), colour.stroke_width(2)).point_size(3),
                )?
                .label(method.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_measurement_there_is_an_empty_picture() {
        let picture = render("max", &[]).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture}");
        assert!(picture.contains("cpu max"), "{picture}");
    }
}
