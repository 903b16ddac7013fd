//! Rows as bars: SVG that needs nothing but a browser, in colours that read on light and dark.

use std::{fmt::Write as _, fs, path::Path};

use super::{support::Fallible, workloads::Row};

const WIDTH: f64 = 720.0;
const LEFT: f64 = 190.0;
const BAR: f64 = 16.0;
const GAP: f64 = 18.0;

/// Writes `docs/plots/SECTION.svg` for each section that was run: throughput and CPU time beside the best of nginx, which is 1.
pub(crate) fn write(rows: &[Row]) -> Fallible<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plots");
    fs::create_dir_all(&folder)?;
    let mut sections: Vec<&str> = rows.iter().map(|row| row.section).collect();
    sections.dedup();
    for section in sections {
        let bars = rows.iter().filter(|row| row.section == section);
        let bars: Vec<(String, f64, f64)> = bars
            .filter_map(|row| {
                let (throughput, cpu) = row.ratios()?;
                Some((row.workload.clone(), throughput, cpu))
            })
            .collect();
        fs::write(folder.join(format!("{section}.svg")), draw(&bars)?)?;
    }
    Ok(())
}

fn draw(bars: &[(String, f64, f64)]) -> Result<String, std::fmt::Error> {
    let most = bars.iter().flat_map(|(_, a, b)| [*a, *b]).fold(1.5, f64::max);
    let scale = (WIDTH - LEFT - 60.0) / most;
    let height = 50.0 + bars.len() as f64 * (2.0 * BAR + GAP) + 20.0;
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#777\">"
    )?;
    writeln!(svg, "<rect x=\"{LEFT}\" y=\"10\" width=\"12\" height=\"12\" fill=\"#2a78d6\"/>")?;
    writeln!(svg, "<text x=\"{}\" y=\"21\">throughput beside nginx (more is better)</text>", LEFT + 18.0)?;
    writeln!(svg, "<rect x=\"{}\" y=\"10\" width=\"12\" height=\"12\" fill=\"#eb6834\"/>", LEFT + 280.0)?;
    writeln!(svg, "<text x=\"{}\" y=\"21\">CPU time per GB (less is better)</text>", LEFT + 298.0)?;
    let mut y = 40.0;
    for (workload, throughput, cpu) in bars {
        writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{workload}</text>", LEFT - 10.0, y + BAR + 4.0)?;
        for (value, colour) in [(throughput, "#2a78d6"), (cpu, "#eb6834")] {
            let width = value * scale;
            writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                BAR - 2.0
            )?;
            writeln!(svg, "<text x=\"{:.1}\" y=\"{:.0}\">{value:.2}</text>", LEFT + width + 6.0, y + BAR - 4.0)?;
            y += BAR;
        }
        y += GAP;
    }
    let one = LEFT + scale;
    writeln!(
        svg,
        "<line x1=\"{one:.1}\" y1=\"32\" x2=\"{one:.1}\" y2=\"{:.0}\" stroke=\"#777\" stroke-dasharray=\"4 3\"/>",
        height - 18.0
    )?;
    writeln!(svg, "<text x=\"{one:.1}\" y=\"{:.0}\" text-anchor=\"middle\">nginx</text>\n</svg>", height - 4.0)?;
    Ok(svg)
}
