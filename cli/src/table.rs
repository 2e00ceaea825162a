//! Rows of texts in, aligned lines out. Pure.

/// Blanks between columns.
const GAP: usize = 3;

/// Aligned to the left; no blanks at the ends of lines; one line feed after each.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row: &Vec<String>| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0) + GAP).collect();
    let mut text = String::new();
    for row in rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A row of anything that can be shown.
#[macro_export]
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$($cell.to_string()),*] };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [row!["A", "LONG", "C"], row!["longer", 1, ""], row!["×", "2", "3"]];
        assert_eq!(aligned(&rows), "A        LONG   C\nlonger   1\n×        2      3\n");
        assert_eq!(aligned(&[]), "");
    }
}
