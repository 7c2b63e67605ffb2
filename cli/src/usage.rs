//! `banyan usage`: who used how much of what, and the last requests.

use banyan_store::{LogEntry, Store, UsageRow, day_of, unix_ms};

use crate::{
    exit::{Code, Failure},
    output,
    store::StoreArgs,
};

const DAY_MS: i64 = 86_400_000;

/// How to print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The first day (UTC), such as 2026-11-20; by default 30 days ago.
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<String>,
    /// The last day; by default today.
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<String>,
    /// One key only, by its name or its id.
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// The last requests, so many, instead of sums.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with_all = ["from", "to"])]
    requests: Option<u32>,
    #[command(flatten)]
    store: StoreArgs,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let store = args.store.open().await?;
    let key = match &args.key {
        Some(name) => Some(id_of(&store, name).await?),
        None => None,
    };
    if let Some(last) = args.requests {
        let log = store.request_log(None, last, key.as_deref()).await?;
        return show(args.output, &log, &LOG, log_row);
    }
    let from = args.from.unwrap_or_else(|| day_of(unix_ms() - 30 * DAY_MS));
    let to = args.to.unwrap_or_else(|| day_of(unix_ms()));
    let usage = store.usage(&from, &to, key.as_deref()).await?;
    show(args.output, &usage, &USAGE, usage_row)
}

/// Revoked keys have usage too.
async fn id_of(store: &Store, name: &str) -> Result<String, Failure> {
    let keys = store.list_keys().await?;
    let found = keys.iter().rev().find(|key| key.name == name || key.id == name);
    let missing = || Failure::told(Code::NotFound, format!("no key is named `{name}`")).hint("`banyan key list` shows all keys");
    found.map(|key| key.id.clone()).ok_or_else(missing)
}

const USAGE: [&str; 8] = ["day", "key", "model", "node", "requests", "failed", "prompt_tokens", "completion_tokens"];

fn usage_row(row: &UsageRow) -> Vec<String> {
    let key = if row.key.is_empty() { &row.key_id } else { &row.key };
    let texts = [&row.day, key, &row.model, &row.node].map(String::clone);
    let numbers = [row.requests, row.failed, row.prompt_tokens, row.completion_tokens].map(|number| number.to_string());
    texts.into_iter().chain(numbers).collect()
}

const LOG: [&str; 9] =
    ["time", "key_id", "model", "node", "status", "prompt_tokens", "completion_tokens", "total_ms", "query_id"];

fn log_row(entry: &LogEntry) -> Vec<String> {
    let time = format!("{} {}", day_of(entry.at_ms), output::time_of_day(entry.at_ms.unsigned_abs()));
    let numbers = [entry.status, entry.prompt_tokens, entry.completion_tokens, entry.total_ms].map(|number| number.to_string());
    let texts = [time, entry.key_id.clone(), entry.model.clone(), entry.node.clone()];
    texts.into_iter().chain(numbers).chain([entry.query_id.clone()]).collect()
}

fn show<R: serde::Serialize>(format: Format, rows: &[R], head: &[&str], row: fn(&R) -> Vec<String>) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(&rows),
        Format::Csv => {
            let line = |cells: &[String]| cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",");
            let head: Vec<String> = head.iter().map(|&name| name.to_owned()).collect();
            let lines: Vec<String> = std::iter::once(line(&head)).chain(rows.iter().map(|one| line(&row(one)))).collect();
            output::print(&lines.join("\n"))
        }
        Format::Table if rows.is_empty() => {
            output::note("nothing was asked in that time");
            Ok(())
        }
        Format::Table => {
            let cell = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
            let head: Vec<String> = head.iter().map(|name| name.to_uppercase().replace('_', " ")).collect();
            let rows = rows.iter().map(|one| row(one).into_iter().map(cell).collect());
            output::print(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
        }
    }
}

/// RFC 4180.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

fn day(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('-').collect();
    let digits = |part: &&str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
    match &parts[..] {
        [year, month, day] if digits(year, 4) && digits(month, 2) && digits(day, 2) => Ok(text.to_owned()),
        _ => Err("expected a day like 2026-11-20".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_cells_are_written_as_others_read_them() {
        assert!(day("2026-11-20").is_ok());
        for wrong in ["", "2026", "20-11-2026", "2026-1-2", "2026-11-2x"] {
            assert!(day(wrong).is_err(), "{wrong}");
        }
        assert_eq!(["a", "a,b", "say \"a\""].map(quoted), ["a", "\"a,b\"", "\"say \"\"a\"\"\""]);
    }
}
