//! Tables for people: columns as wide as their content, no frame.

use crate::printer::Style;

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell(String, Style);

impl Cell {
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self(text.into(), style)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(text.into(), Style::Plain)
    }
}

/// Rows under a heading.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: vec![] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn render(&self, color: bool) -> String {
        let heading = self.heading.iter().map(|text| Cell::styled(*text, Style::Dim)).collect();
        let rows: Vec<&Vec<Cell>> = std::iter::once(&heading).chain(&self.rows).collect();
        let width = |column: usize| {
            rows.iter().map(|row| row[column].0.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        let mut text = String::new();
        for row in rows {
            let last = row.iter().rposition(|cell| !cell.0.is_empty()).unwrap_or_default();
            for (column, Cell(content, style)) in row.iter().enumerate().take(last + 1) {
                text += &style.paint(content, color);
                if column < last {
                    let gap = widths[column] - content.chars().count() + 2;
                    text.extend(std::iter::repeat_n(' ', gap));
                }
            }
            text.push('\n');
        }
        text
    }
}
