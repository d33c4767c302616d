//! Tables for a terminal: columns as wide as they have to be.

use std::fmt::Write;
use std::ops::Range;

/// A line a row. The columns `numbers` are flush right, the others flush left; the last one is as long as it is.
///
/// Every row has as many cells as the first.
#[must_use]
pub fn aligned(rows: &[Vec<String>], numbers: Range<usize>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if numbers.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:width$}")
            }
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_begin_or_end_where_their_titles_do() {
        let rows = [["a", "n", "end"], ["long", "100", "x"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, 1..2), "a       n  end\nlong  100  x\n");
    }
}
