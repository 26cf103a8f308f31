//! Tables in plain text.

/// Formats rows as columns, each as wide as its widest cell, with two spaces between them.
pub fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "bcd", "e"], ["ab", "", "efgh"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "a   bcd  e\nab       efgh\n");
    }
}
