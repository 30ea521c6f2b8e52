//! A table that fits a terminal's width: only the last column is cut.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Lays `rows` out under `header`, columns apart by two spaces. With a `width` no line is longer; what
/// does not fit of the last column ends in `…`.
pub(super) fn layout(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.width()).collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(cell.width());
        }
    }
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let lines = std::iter::once(&header).chain(rows).map(|row| line(row, &widths, width));
    lines.collect::<Vec<_>>().join("\n")
}

fn line(row: &[String], widths: &[usize], width: Option<usize>) -> String {
    let mut text = String::new();
    for (column, cell) in row.iter().enumerate() {
        if column + 1 == row.len() {
            let room = width.map(|width| width.saturating_sub(text.width()));
            text.push_str(&cut(cell, room));
        } else {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', widths[column] - cell.width() + 2));
        }
    }
    cut(text.trim_end(), width)
}

/// Cuts `text` to `columns`.
pub(super) fn shorten(text: &str, columns: usize) -> String {
    cut(text, Some(columns))
}

fn cut(text: &str, room: Option<usize>) -> String {
    let Some(room) = room.filter(|room| text.width() > *room) else { return text.to_owned() };
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns + 1 > room {
            break;
        }
        used += columns;
        kept.push(c);
    }
    if room > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_is_cut_to_the_width() {
        let rows = vec![
            vec!["a".to_owned(), "long command line".to_owned()],
            vec!["bbb".to_owned(), "x".to_owned()],
        ];
        assert_eq!(layout(&["ID", "COMMAND"], &rows, None), "ID   COMMAND\na    long command line\nbbb  x");
        assert_eq!(layout(&["ID", "COMMAND"], &rows, Some(12)), "ID   COMMAND\na    long c…\nbbb  x");
    }

    #[test]
    fn wide_characters_count_twice() {
        let rows = vec![vec!["日本".to_owned(), "日本語".to_owned()]];
        for width in 1..20 {
            let text = layout(&["ID", "C"], &rows, Some(width));
            assert!(text.lines().all(|line| line.width() <= width), "{width}: {text}");
        }
    }
}
