//! Writing: data to standard output, everything else to standard error; tables, JSON lines, colours on terminals.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
};

use serde::Serialize;

use crate::{exit::Failure, terminal};

/// How to print what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// As [`Format`], and names alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ListFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// One name a line.
    Name,
}

/// Writes lines to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(&terminal::lines(text))
}

/// Writes lines in which the words for nodes' states have colours, where there are any.
pub(crate) fn print_states(text: &str) -> Result<(), Failure> {
    let text = terminal::lines(text);
    write(&if coloured() { paint(&text) } else { text.into_owned() })
}

/// Empties the screen for what is printed next, where standard output is one.
pub(crate) fn clear() -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        write!(out, "\x1b[2J\x1b[H")?;
    }
    Ok(())
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    Ok(out.flush()?)
}

/// Writes a part of a line to standard output, at once.
pub(crate) fn piece(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    write!(out, "{}", terminal::lines(text))?;
    Ok(out.flush()?)
}

/// Writes a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    write(&terminal::json(&serde_json::to_string_pretty(value).map_err(anyhow::Error::new)?))
}

/// Writes a value as one line of JSON, for streams of values.
pub(crate) fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    write(&json_line(value)?)
}

/// A value as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    Ok(terminal::json(&serde_json::to_string(value).map_err(anyhow::Error::new)?))
}

/// Tells the person at the terminal something that is not data.
pub(crate) fn note(text: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(io::stderr().lock(), "{}", terminal::lines(text));
}

/// Whether standard output is a terminal whose user wants colours (<https://no-color.org>).
fn coloured() -> bool {
    io::stdout().is_terminal() && colours_wanted()
}

/// Whether the user wants them.
pub(crate) fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Rows in aligned columns, two spaces apart, with no spaces at the ends of lines. A row is a line, whatever its cells hold.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|cell| terminal::line(cell)).collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Colours the words for a node's state wherever they stand alone.
fn paint(text: &str) -> String {
    const STATES: [(&str, &str); 6] =
        [("ready", "32"), ("busy", "33"), ("starting", "36"), ("draining", "36"), ("detached", "31"), ("silent", "31")];
    text.split_inclusive([' ', '\n'])
        .map(|piece| {
            let word = piece.trim_end();
            match STATES.iter().find(|(state, _)| *state == word) {
                Some((_, colour)) => format!("\x1b[{colour}m{word}\x1b[0m{}", &piece[word.len()..]),
                None => piece.to_owned(),
            }
        })
        .collect()
}

/// A duration of so many microseconds, as people say it.
pub(crate) fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// So many bytes, as people say it.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The time of day (UTC) of a Unix time in milliseconds.
pub(crate) fn time_of_day(unix_ms: u64) -> String {
    let of_day = unix_ms % 86_400_000;
    let (hours, minutes, seconds) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", of_day % 1_000)
}

/// `0` of `noun`s is `no nouns`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters_and_lines_end_without_spaces() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["NODE", "STATE", ""]), row(["└── é", "x", ""])]);
        assert_eq!(text, "NODE   STATE\n└── é  x\n");
    }

    #[test]
    fn no_cell_forges_a_row() {
        let text = table(&[vec!["a".to_owned(), "tiny\nroot  ready\x1b[1A".to_owned()], vec!["b".to_owned(), "x".to_owned()]]);
        assert_eq!(text, "a  tiny\u{fffd}root  ready\u{fffd}[1A\nb  x\n");
    }

    #[test]
    fn only_whole_words_are_painted() {
        assert_eq!(paint("already ready\n"), "already \x1b[32mready\x1b[0m\n");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        assert_eq!([12, 1_234, 2_500_000].map(microseconds), ["12 µs", "1.2 ms", "2.50 s"]);
        assert_eq!(time_of_day(86_400_000 * 20_000 + 3_723_004), "01:02:03.004Z");
        assert_eq!([9, 1_500, 2_000_000, 3_100_000_000].map(bytes), ["9 B", "1.5 kB", "2.0 MB", "3.1 GB"]);
        assert_eq!([0, 1, 2].map(|n| count(n, "node")), ["0 nodes", "1 node", "2 nodes"]);
    }
}
