//! The report as a picture: a bar for each row, with its spread and its target. The one user of
//! plotters.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::failure::Failure;
use crate::harness::Whose;
use crate::measure::Measured;
use crate::report::brief;
use crate::suite::SuiteReport;

const WIDTH: u32 = 1180;
const ROW_HEIGHT: i32 = 19;
const GROUP_HEIGHT: i32 = 62;
const HEAD_HEIGHT: i32 = 112;
const FOOT_HEIGHT: i32 = 24;
/// Where names end and where bars begin and end.
const NAMES_END: i32 = 470;
const BARS_START: i32 = 480;
const BARS_END: i32 = 930;
/// Where the figures beside the bars end.
const RATIOS_END: i32 = 1002;
const TIMES_END: i32 = 1102;
const MARGIN: i32 = 24;

const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(28, 34, 42);
const FAINT: RGBColor = RGBColor(104, 114, 126);
const GRID: RGBColor = RGBColor(226, 230, 235);
const OWN: RGBColor = RGBColor(19, 112, 188);
const FLOOR: RGBColor = RGBColor(146, 154, 164);
const OTHER: RGBColor = RGBColor(222, 148, 62);
const MET: RGBColor = RGBColor(22, 128, 60);
const MISSED: RGBColor = RGBColor(196, 36, 36);
const FONT: &str = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

impl SuiteReport {
    /// The picture as one SVG file that needs nothing else.
    ///
    /// # Errors
    /// When nothing was timed, or it cannot be drawn.
    pub fn svg(&self) -> Result<String, Failure> {
        let nr_rows = self.rows().count() as i32;
        if nr_rows == 0 {
            return Err(Failure::new("nothing was timed, so there is nothing to draw"));
        }
        let height = HEAD_HEIGHT
            + FOOT_HEIGHT
            + nr_rows * ROW_HEIGHT
            + self.groups.len() as i32 * GROUP_HEIGHT;
        let mut svg = String::new();
        {
            let area =
                SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
            area.fill(&PAPER).map_err(failed)?;
            self.draw_head(&area)?;
            let mut top = HEAD_HEIGHT;
            for group in &self.groups {
                let title = format!("{}  {}", group.key, group.measurement.title);
                let rows = &group.measurement.rows;
                let bottom = top + GROUP_HEIGHT + rows.len() as i32 * ROW_HEIGHT;
                draw_group(&area, &title, rows, (top, bottom))?;
                top = bottom;
            }
            area.present().map_err(failed)?;
        }
        Ok(with_names(&svg, height))
    }

    fn draw_head(&self, area: &Area<'_>) -> Result<(), Failure> {
        let met = format!("{} of {} targets met", self.nr_met, self.nr_met + self.nr_missed);
        text(area, (MARGIN, 30), 20, INK, HPos::Left, &format!("pgmap bench: {met}"))?;
        text(area, (MARGIN, 54), 12, FAINT, HPos::Left, &self.machine_line())?;
        let mut at = MARGIN;
        for (name, color) in [("pgmap", OWN), ("floor", FLOOR), ("others", OTHER)] {
            bar(area, [(at, 72), (at + 14, 84)], color)?;
            text(area, (at + 20, 78), 12, INK, HPos::Left, name)?;
            at += 90;
        }
        let how = "bar: median ratio to the group's base, logarithmic, left is faster; whisker: \
                   least to greatest; thick mark: target";
        text(area, (at, 78), 12, FAINT, HPos::Left, how)?;
        if let Some(doubt) = self.load.doubts.first() {
            let doubt = format!("Not to be trusted: {doubt}");
            text(area, (MARGIN, 98), 12, MISSED, HPos::Left, &doubt)?;
        }
        Ok(())
    }
}

/// Where a ratio lies between the ends of a logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn of(rows: &[Measured]) -> Self {
        let least = rows.iter().map(|row| row.ratio.min).fold(1.0, f64::min);
        let greatest = rows.iter().map(|row| row.ratio.max).fold(1.0, f64::max);
        Self { low: (least * 0.8).max(1e-7), high: greatest * 1.15 }
    }

    fn x(&self, ratio: f64) -> i32 {
        let share = (ratio.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        BARS_START + (share * f64::from(BARS_END - BARS_START)) as i32
    }

    /// 1, 2 and 5 of each power of ten where there is room, else powers of ten only.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = if decades > 5.0 { 2 } else { 1 };
        (-8..12)
            .filter(|power| power % every == 0)
            .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

fn draw_group(
    area: &Area<'_>,
    title: &str,
    rows: &[Measured],
    (top, bottom): (i32, i32),
) -> Result<(), Failure> {
    let axis = Axis::of(rows);
    text(area, (MARGIN, top + 24), 15, INK, HPos::Left, title)?;
    let (bars_top, bars_bottom) = (top + 50, bottom - 8);
    for tick in axis.ticks() {
        let x = axis.x(tick);
        line(area, [(x, bars_top - 2), (x, bars_bottom)], GRID, 1)?;
        text(area, (x, bars_top - 10), 10, FAINT, HPos::Center, &short_number(tick))?;
    }
    let one = axis.x(1.0);
    line(area, [(one, bars_top - 2), (one, bars_bottom)], FAINT, 1)?;
    for (at, row) in rows.iter().enumerate() {
        draw_row(area, &axis, row, bars_top + at as i32 * ROW_HEIGHT + ROW_HEIGHT / 2)?;
    }
    Ok(())
}

fn draw_row(area: &Area<'_>, axis: &Axis, row: &Measured, y: i32) -> Result<(), Failure> {
    let color = match row.whose {
        Whose::Pgmap => OWN,
        Whose::Floor => FLOOR,
        Whose::Rival => OTHER,
    };
    text(area, (NAMES_END, y), 12, INK, HPos::Right, &row.name)?;
    bar(area, [(BARS_START, y - 6), (axis.x(row.ratio.median), y + 6)], color)?;
    let (least, greatest) = (axis.x(row.ratio.min), axis.x(row.ratio.max));
    line(area, [(least, y), (greatest, y)], INK, 1)?;
    for x in [least, greatest] {
        line(area, [(x, y - 3), (x, y + 3)], INK, 1)?;
    }
    let verdict = row.verdict.as_ref();
    if let Some(most) = row.most_ratio {
        let x = axis.x(most);
        let color = if verdict.is_some_and(|verdict| verdict.is_met) { MET } else { MISSED };
        line(area, [(x, y - 9), (x, y + 9)], color, 3)?;
    }
    text(area, (RATIOS_END, y), 12, INK, HPos::Right, &times(row))?;
    let ns = format!("{} ns", brief(row.ns.median));
    text(area, (TIMES_END, y), 12, FAINT, HPos::Right, &ns)?;
    if let Some(verdict) = verdict {
        let color = if verdict.is_met { MET } else { MISSED };
        let x = WIDTH as i32 - 12;
        text(area, (x, y), 12, color, HPos::Right, verdict.word())?;
    }
    Ok(())
}

/// The ratio with the base it is to, as short as it goes.
fn times(row: &Measured) -> String {
    if row.base == row.name {
        return "base".into();
    }
    let unit = if row.base_name() == "F" { "F" } else { "x" };
    format!("{} {unit}", brief(row.ratio.median))
}

fn short_number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.0}M", value / 1e6),
        value if value >= 1e3 => format!("{:.0}k", value / 1e3),
        value => format!("{value}"),
    }
}

fn text(
    area: &Area<'_>,
    at: (i32, i32),
    size: i32,
    color: RGBColor,
    side: HPos,
    words: &str,
) -> Result<(), Failure> {
    // The backend takes a size for the height of a line and divides it by 1.24 for the letters'.
    let style = TextStyle::from((FONT, f64::from(size) * 1.24).into_font())
        .color(&color)
        .pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style)).map_err(failed)
}

fn bar(area: &Area<'_>, corners: [(i32, i32); 2], color: RGBColor) -> Result<(), Failure> {
    area.draw(&Rectangle::new(corners, color.filled())).map_err(failed)
}

fn line(
    area: &Area<'_>,
    ends: [(i32, i32); 2],
    color: RGBColor,
    width: u32,
) -> Result<(), Failure> {
    let element = PathElement::new(ends.to_vec(), color.stroke_width(width));
    area.draw(&element).map_err(failed)
}

/// Says what the picture is to whoever cannot see it, and lets it shrink with the page.
fn with_names(svg: &str, height: i32) -> String {
    let size = format!("width=\"{WIDTH}\" height=\"{height}\"");
    let svg = svg.replacen(&size, &format!("{size} role=\"img\" style=\"max-width:100%\""), 1);
    let Some((head, rest)) = svg.split_once('>') else { return svg };
    format!("{head}>\n<title>pgmap bench: times as ratios to a floor</title>{rest}")
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("the picture cannot be drawn: {error}"))
}
