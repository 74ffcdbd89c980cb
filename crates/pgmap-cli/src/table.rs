//! Tables on a terminal or in a pipe; the one user of comfy-table.

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement};

/// Spaces left and right of a column.
const PADDING: (u16, u16) = (0, 2);

/// Which side a column's cells lean to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header, and a line that closes them.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
    closing: Vec<String>,
}

/// How much a table may be dressed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    /// Characters only.
    Plain,
    /// A terminal that may show bold.
    Styled,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), ..Self::default() }
    }

    /// A table of two columns without a header: what, and how much.
    pub fn facts() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Adds a fact.
    pub fn fact(&mut self, what: &str, value: impl ToString) {
        self.rows.push(vec![what.into(), value.to_string()]);
    }

    /// Adds a line below the table.
    pub fn closing(&mut self, line: impl Into<String>) {
        self.closing.push(line.into());
    }

    /// The lines to print. Without `with_closing` the lines below the table are left out.
    pub fn lines(&self, dress: Dress, closing: Closing) -> Vec<String> {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if dress == Dress::Styled {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !self.columns.is_empty() {
            table.set_header(self.columns.iter().map(|&(name, side)| {
                let cell = Cell::new(name).set_alignment(alignment(side));
                if dress == Dress::Styled { cell.add_attribute(Attribute::Bold) } else { cell }
            }));
        }
        for row in &self.rows {
            table.add_row(row.iter().enumerate().map(|(at, text)| {
                let side = self.columns.get(at).map_or(Side::Left, |&(_, side)| side);
                Cell::new(text).set_alignment(alignment(side))
            }));
        }
        let mut lines = Vec::new();
        if !self.rows.is_empty() {
            table.column_iter_mut().for_each(|column| {
                column.set_padding(PADDING);
            });
            lines.extend(table.lines().map(|line| line.trim_end().to_owned()));
        }
        if closing == Closing::Shown {
            lines.extend(self.closing.iter().cloned());
        }
        lines
    }
}

/// Whether the lines below a table are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// They are.
    Shown,
    /// They are not.
    Hidden,
}

const fn alignment(side: Side) -> CellAlignment {
    match side {
        Side::Left => CellAlignment::Left,
        Side::Right => CellAlignment::Right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lean_right_and_the_closing_line_comes_last() {
        let mut table = Table::new(&[("NAME", Side::Left), ("BYTES", Side::Right)]);
        table.row(vec!["a".into(), "5".into()]);
        table.row(vec!["long name".into(), "12345".into()]);
        table.closing("2 files");
        let lines = table.lines(Dress::Plain, Closing::Shown);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[1].starts_with("a  ") && lines[1].ends_with(" 5"), "{lines:?}");
        assert_eq!(lines[3], "2 files");
        assert_eq!(lines[0].len(), lines[1].len(), "{lines:?}");
        assert_eq!(table.lines(Dress::Plain, Closing::Hidden).len(), 3);
    }

    #[test]
    fn an_empty_table_is_its_closing_line() {
        let mut table = Table::new(&[("NAME", Side::Left)]);
        table.closing("0 files");
        assert_eq!(table.lines(Dress::Styled, Closing::Shown), ["0 files"]);
    }
}
